"""An engine whose answers are given: for tests, benchmarks and dry runs. No model, no torch.

As a process: `python -m gym_servers.models.scripted --settings '{"texts": ["hello"], "secret": "s"}'`. It keeps what Engine asks of
an implementation and checks what it may rely on: an update while a call is in flight is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from gym_servers.base import Guard
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.engine import EngineState, FinishReason, Generation, Sampling, Tokenizer
from gym_servers.models.serving import ListenSettings, part_of, run
from gym_servers.protocol import Item, OmnigymError, final_text

END_TOKEN = "<|im_end|>"
END_ID = 0x110000  # the first number that is no code point
TURN = "<|im_start|>assistant\n"


class CodePoints:
    """Every character is a token, its code point; the end token is one too.

    merges: texts that `encode` takes as one token though a sampler may spell them: decode, then encode, changes such ids.
    """

    end_token = END_TOKEN

    def __init__(self, merges: Sequence[str] = ()) -> None:
        self._ids = {END_TOKEN: END_ID, **{text: END_ID + 1 + k for k, text in enumerate(merges)}}
        self._texts = {token: text for text, token in self._ids.items()}
        self._longest_first = sorted(self._ids, key=len, reverse=True)

    def encode(self, text: str) -> list[int]:
        ids = []
        place = 0
        while place < len(text):
            known = next((t for t in self._longest_first if text.startswith(t, place)), None)
            ids.append(ord(text[place]) if known is None else self._ids[known])
            place += 1 if known is None else len(known)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._texts.get(token) or chr(token) for token in ids)


@dataclass(frozen=True)
class Asked:
    """One call. prompt: the text of prompt_ids. turn: how many assistant turns stand in it, a task's examples included."""

    prompt: str
    prompt_ids: list[int]
    turn: int
    seed: int
    request_id: str


Script = Callable[[Asked], str | list[int]]
"""The answer as text, to which the end token is added, or as the very ids to sample."""


def scripted_logprob(seed: int, place: int, token: int) -> float:
    """The log-probability that a scripted token carries, in [-1, 0): another one for another seed, place or token."""
    return -((seed * 31 + place * 7 + token) % 9973 + 1) / 9973


def _written(item: Item) -> str:
    if item["type"] != "function_call":
        return final_text([item])
    arguments = orjson.loads(item["arguments"])
    written = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else orjson.dumps(value).decode()}\n</parameter>\n"
        for key, value in arguments.items()
    )
    return f"<tool_call>\n<function={item['name']}>\n{written}</function>\n</tool_call>"


def turns_of(items: Sequence[Item]) -> list[str]:
    """The model's turns, as it writes them, that make the output `items`: what others say (a tool's output, a user's message) ends
    a turn."""
    turns: list[str] = []
    after_others = True
    for item in items:
        others = item["type"] == "function_call_output" or item.get("role") == "user"
        if not others:
            if after_others:
                turns.append(_written(item))
            else:
                turns[-1] += "\n" + _written(item)
        after_others = others
    return turns


SEED_STRIDE = 1_000_003
"""Between the seeds of a rollout's calls."""


def by_seed(scripts: Sequence[Sequence[str]]) -> Script:
    """The rollout whose first call has seed k (below SEED_STRIDE) samples the turns scripts[k], then nothing."""
    before: dict[int, int] = {}

    def script(asked: Asked) -> str:
        rollout = asked.seed % SEED_STRIDE
        turns = scripts[rollout]
        turn = asked.turn - before.setdefault(rollout, asked.turn)  # a task's own examples are turns too
        return turns[turn] if turn < len(turns) else ""

    return script


class ScriptedEngine:
    """An Engine. script: a function, or a list of texts of which turn k of a conversation gets the k-th, later ones the last.

    seconds: how long a call takes; of one that is aborted after a part of that, that part of the answer was sampled.
    """

    def __init__(
        self,
        script: Script | Sequence[str],
        *,
        tokenizer: Tokenizer | None = None,
        seconds: float = 0.0,
        update_seconds: float = 0.0,
        max_context: int = 1 << 20,
    ) -> None:
        self.script = script
        self.tokenizer: Tokenizer = tokenizer or CodePoints()
        self.seconds, self.update_seconds, self.max_context = seconds, update_seconds, max_context
        self.chat_template: str | None = None
        self.special: tuple[tuple[str, str], ...] = ()
        self.state = EngineState(model="scripted", dtype="none")
        self.in_flight = 0
        self._aborts: dict[str, asyncio.Event] = {}

    def _answer(self, asked: Asked) -> list[int]:
        if callable(self.script):
            answer = self.script(asked)
            if not isinstance(answer, str):
                return answer
        else:
            answer = self.script[min(asked.turn, len(self.script) - 1)]
        return self.tokenizer.encode(answer + self.tokenizer.end_token)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str) -> Generation:
        prompt = self.tokenizer.decode(prompt_ids)
        ids = self._answer(Asked(prompt, list(prompt_ids), max(0, prompt.count(TURN) - 1), seed, request_id))
        reason: FinishReason = "stop" if len(ids) <= sampling.max_tokens else "length"
        ids = ids[: sampling.max_tokens]
        began = self.state.weight_version
        share = 1.0
        if self.seconds:
            share = await self._wait(request_id)
        if share < 1.0:
            ids, reason = ids[: int(share * len(ids))], "abort"
        logprobs = [scripted_logprob(seed, place, token) for place, token in enumerate(ids)]
        return Generation(ids, logprobs, reason, tuple(sorted({began, self.state.weight_version})))

    async def _wait(self, request_id: str) -> float:
        """Let `seconds` pass. Returns the share that had passed at an abort, else 1."""
        loop = asyncio.get_running_loop()
        aborted = self._aborts[request_id] = asyncio.Event()
        began = loop.time()
        self.in_flight += 1
        try:
            await asyncio.wait_for(aborted.wait(), self.seconds)
        except TimeoutError:
            return 1.0
        finally:
            self.in_flight -= 1
            del self._aborts[request_id]
        return min(0.999, (loop.time() - began) / self.seconds)

    async def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            if (event := self._aborts.get(request_id)) is not None:
                event.set()

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[scripted_logprob(0, k, token) for k, token in enumerate(ids[1:])] for ids in sequences]

    async def update_weights(self, path: str, digest: str, version: int) -> None:
        """There is nothing to load. Raises OmnigymError where calls are in flight."""
        if self.in_flight:
            raise OmnigymError(f"weights were to change while {self.in_flight} calls were in flight")
        await asyncio.sleep(self.update_seconds)
        self.state.weight_version, self.state.digest = version, digest
        self.state.updates += 1

    async def check(self) -> None:
        """It is never dead."""

    async def close(self) -> None:
        """It holds nothing."""


class ScriptedSettings(ModelSettings, ListenSettings):
    """Settings of the server process. texts and seconds: as of ScriptedEngine."""

    texts: list[str]
    seconds: float = 0.0


async def make(settings: ScriptedSettings) -> Guard:
    """The model server over a scripted engine."""
    engine = ScriptedEngine(settings.texts, seconds=settings.seconds)
    return build_model_server(engine, part_of(settings, ModelSettings), settings.server())


if __name__ == "__main__":
    run("scripted", "Model server whose answers are given", ScriptedSettings, make)
