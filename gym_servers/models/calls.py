"""What a model server does with a call: admission, the prompt, sampling, the turn taken apart, the ledger; and weight updates.

A reasoning budget (spec/algorithm.md, section 4) takes two engine calls: the first samples at most the budget; if it did not close its
reasoning the server writes the closing tag, which was not sampled and is masked 0; the second goes on to the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gym_servers.idempotency import Once
from gym_servers.models.converter import TOKEN_FIELDS
from gym_servers.models.engine import Engine, Generation, Sampling, WeightsRefused
from gym_servers.models.ledger import Brought, Ledger, Prompt, canonical
from gym_servers.models.parsers import THINK_CLOSE, parse_turn
from gym_servers.models.requests import Switches, check_sampling, number, switches
from gym_servers.models.template import ChatTemplate
from gym_servers.models.wire import pack_ledger
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError

DRAIN_SECONDS = 60.0
MAX_CLOSED_BYTES = 64 << 20
MAX_STORED_ANSWERS = 32
"""Per rollout: a call is repeated soon, or never."""


class ModelSettings(BaseModel):
    """secret signs rollout ids. Ledgers that nobody used for ledger_ttl seconds are dropped."""

    model_config = ConfigDict(extra="forbid")
    secret: str
    default_max_tokens: int = 1024
    ledger_ttl: float = 7200.0
    max_ledgers: int = 100_000
    reasoning: bool | None = None
    """None: a model without reasoning. A request may say so itself (`chat_template_kwargs.reasoning`)."""
    reasoning_budget: int | None = None
    """Most tokens of reasoning in a turn; a request may set its own (`chat_template_kwargs.reasoning_budget`)."""


@dataclass
class Open:
    """A rollout's ledger, when it was last used, its calls in the engine, and its latest answers by idempotency key."""

    ledger: Ledger
    touched: float = field(default_factory=time.monotonic)
    calls: set[str] = field(default_factory=set)
    closing: bool = False
    answers: Once[Response] = field(default_factory=lambda: Once(MAX_STORED_ANSWERS))


@dataclass
class Call:
    """A call under way: its requests in the engine, what those that ended sampled, and whether nobody waits for it any more."""

    opened: Open | None
    requests: set[str] = field(default_factory=set)
    sampled: list[Generation] = field(default_factory=list)
    given_up: bool = False


@dataclass
class Answered:
    """One finished call."""

    message: Item
    finish_reason: str
    prompt_ids: list[int]
    generation: Generation


def unavailable(message: str, retryable: bool = True) -> FailureError:
    """The server cannot answer."""
    return FailureError(Failure(kind="model_error", message=message, retryable=retryable))


def given_up() -> FailureError:
    """The end of a call whose answer nobody waits for."""
    return FailureError(
        Failure(kind="cancelled", message="the call was given up: its client is gone, or its time over")
    )


class ModelServer:
    """The state behind the routes."""

    def __init__(self, engine: Engine, settings: ModelSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.template = ChatTemplate(engine.chat_template, engine.special)
        self.ledgers: dict[str, Open] = {}
        self.closed: OrderedDict[str, bytes] = OrderedDict()
        self.closed_bytes = 0
        self.open_calls: set[str] = set()
        self.scoring = 0
        self.updating = False
        self.rehearsing = False
        self.requests = 0

    def check_admission(self) -> None:
        """Raises FailureError while weights change, or after an update failed."""
        if self.engine.state.poisoned:
            message = f"a weight update failed, the engine must be restarted: {self.engine.state.poisoned}"
            raise unavailable(message, retryable=False)
        if self.updating:
            raise unavailable("weights are being updated")

    def opened(self, rollout_id: str) -> Open:
        """The ledger of a rollout, made on its first call. Raises FailureError when there are too many, while it closes, and after."""
        found = self.ledgers.get(rollout_id)
        if found is None and rollout_id in self.closed:
            raise unavailable(f"rollout '{rollout_id}' is closed: nothing more is sampled for it", retryable=False)
        if found is None:
            if len(self.ledgers) >= self.settings.max_ledgers:
                self.reap()
            if len(self.ledgers) >= self.settings.max_ledgers:
                raise unavailable(f"{len(self.ledgers)} rollouts are open: close them, or raise max_ledgers")
            found = self.ledgers[rollout_id] = Open(Ledger(rollout_id))
        if found.closing:
            raise unavailable(f"rollout '{rollout_id}' is being closed", retryable=False)
        found.touched = time.monotonic()
        return found

    def reap(self) -> None:
        """Drop ledgers that nobody used for ledger_ttl seconds."""
        limit = time.monotonic() - self.settings.ledger_ttl
        for key in [key for key, value in self.ledgers.items() if value.touched < limit and not value.calls]:
            del self.ledgers[key]

    async def close(self, rollout_id: str) -> bytes:
        """What the rollout sampled, packed; its calls that still run are ended first, so that their tokens are counted.

        A close that is repeated, because the answer to it was lost, gets the same again. What is kept for that, the latest
        MAX_CLOSED_BYTES, also tells late calls that their rollout is over.
        """
        found = self.ledgers.get(rollout_id)
        if found is None and rollout_id in self.closed:
            return self.closed[rollout_id]
        ledger = Ledger(rollout_id)
        if found is not None:
            found.closing = True
            await self._end(found.calls)
            ledger = found.ledger
        packed = pack_ledger(ledger.export())
        self.ledgers.pop(rollout_id, None)
        self.closed_bytes += len(packed) - len(self.closed.pop(rollout_id, b""))
        self.closed[rollout_id] = packed
        while self.closed_bytes > MAX_CLOSED_BYTES:
            self.closed_bytes -= len(self.closed.popitem(last=False)[1])
        return packed

    async def check_ready(self) -> None:
        """Raises where the engine is dead or poisoned."""
        if self.engine.state.poisoned:
            self.check_admission()
        await self.engine.check()

    async def complete(
        self, body: Item, opened: Open | None, gone: Callable[[], Coroutine[Any, Any, None]]
    ) -> Answered:
        """One chat completion. gone: returns when the client went away.

        A call for which nobody waits, since its client is gone or its time over (this is cancelled), is aborted, and what it sampled
        is dropped. Raises FailureError then, and where the call was ended by an update or a close.
        """
        call = Call(opened)
        work = asyncio.create_task(self._complete(body, call))  # its own: a second cancellation must not lose tokens
        leaving = asyncio.create_task(gone())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not work.done():
                call.given_up = True
                work.add_done_callback(lambda ended: ended.exception())  # nobody may be left to see it
                await self._end(call.requests)
                await asyncio.wait({work})
        return work.result()

    async def _complete(self, body: Item, call: Call) -> Answered:
        self.check_admission()
        if self.rehearsing:
            raise unavailable("the weights are a rehearsal's: the policy's are still to come")
        opened = call.opened
        if opened is not None and opened.closing:
            raise unavailable(f"rollout '{opened.ledger.rollout_id}' is being closed", retryable=False)
        messages: list[Item] = body["messages"]
        tools: list[Item] | None = body.get("tools") or None
        wanted = switches(body, Switches(self.settings.reasoning, self.settings.reasoning_budget))
        reasoning = wanted.reasoning
        ledger = opened.ledger if opened is not None else Ledger("")
        check_sampling(body, policy=opened is not None)

        def render(part: Sequence[Item], generation: bool, raw: dict[int, str]) -> str:
            return self.template.render(part, tools, reasoning=reasoning, generation=generation, raw=raw)

        tokenizer = self.engine.tokenizer
        brought = self._brought(messages, tools, reasoning)
        prompt = ledger.prompt(messages, render, tokenizer, brought)
        temperature = number(body, "temperature", 1.0, 0.0)
        room = self.engine.max_context - len(prompt.ids)
        place = ledger.open_call(temperature)
        if room < 1:
            ledger.truncation_reason = "context"
            empty = Generation([], [], "length", (self.engine.state.weight_version,))
            return Answered({"role": "assistant", "content": ""}, "context", prompt.ids, empty)
        name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
        asked = int(number(body, name, self.settings.default_max_tokens, 0) or self.settings.default_max_tokens)
        sampling = Sampling(
            max_tokens=min(asked, room),
            temperature=temperature,
            top_p=number(body, "top_p", 1.0, 0.0) or 1.0,
            top_k=int(max(0, number(body, "top_k", 0, -1))),
            stop=(body["stop"],) if isinstance(body.get("stop"), str) else tuple(body.get("stop") or ()),
        )
        seed = (int(number(body, "seed", 0, -(2**63))) + 1_000_003 * place) % 2**31
        budget = wanted.budget if reasoning else None
        try:
            generation = await self._turn(prompt, sampling, seed, budget, call)
            raw = self.template.generation_prefix(reasoning) + self._text(generation.token_ids)
            message = answer_message(raw, tools, reasoning is not None, f"call_{place}")
        except BaseException:
            for lost in call.sampled:
                ledger.record(messages, {}, prompt, "", replace(lost, finish_reason="abort"))
            raise
        calls = message.get("tool_calls")
        # what was sampled under two versions cannot be trained, what nobody was told must not be
        if call.given_up or len(generation.weight_versions) != 1:
            generation = replace(generation, finish_reason="abort")
        ledger.record(messages, message, prompt, raw, generation)
        if generation.finish_reason == "abort":
            if call.given_up:
                raise given_up()
            if opened is not None and opened.closing:
                raise FailureError(Failure(kind="cancelled", message="the call was ended with its rollout"))
            raise FailureError(Failure(kind="version_straddled", message="the call was ended by a weight update"))
        if generation.finish_reason == "length":
            ledger.truncation_reason = "max_tokens"
        finish = "tool_calls" if calls and generation.finish_reason == "stop" else generation.finish_reason
        return Answered(message, finish, prompt.ids, generation)

    def _text(self, ids: Sequence[int]) -> str:
        tokenizer = self.engine.tokenizer
        return tokenizer.decode(ids).removesuffix(tokenizer.end_token)

    def _brought(
        self, messages: Sequence[Item], tools: list[Item] | None, reasoning: bool | None
    ) -> dict[int, Brought]:
        """Assistant turns that came with their own ids, by index; one whose ids do not say what it says is left out."""
        found = {}
        for index, message in enumerate(messages):
            if message.get("role") != "assistant" or any(message.get(name) is None for name in TOKEN_FIELDS[:2]):
                continue
            parts: list[list[int]] = []
            for name in TOKEN_FIELDS[:2]:
                ids = message[name]
                if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
                    raise OmnigymError(f"message {index}: field '{name}' must be a list of token ids")
                parts.append(ids)
            prompt_ids, sampled = parts
            raw = self.template.generation_prefix(reasoning) + self._text(sampled)
            if canonical(answer_message(raw, tools, reasoning is not None, "call")) == canonical(message):
                found[index] = Brought([*prompt_ids, *sampled], raw)
        return found

    async def _turn(self, prompt: Prompt, sampling: Sampling, seed: int, budget: int | None, call: Call) -> Generation:
        if budget is None or budget >= sampling.max_tokens:
            return await self._generate(prompt.ids, sampling, seed, call)
        first = await self._generate(prompt.ids, replace(sampling, max_tokens=budget), seed, call)
        if first.finish_reason != "length":
            return first
        closed = THINK_CLOSE in self._text(first.token_ids)
        written = [] if closed else self.engine.tokenizer.encode(THINK_CLOSE)
        left = sampling.max_tokens - len(first.token_ids) - len(written)
        if left < 1:
            return first
        ids = [*prompt.ids, *first.token_ids, *written]
        rest = replace(sampling, max_tokens=left)
        return first.then(written, await self._generate(ids, rest, (seed + 500_009) % 2**31, call))

    async def _generate(self, ids: Sequence[int], sampling: Sampling, seed: int, call: Call) -> Generation:
        if call.given_up:
            raise given_up()
        self.requests += 1
        request_id = f"call-{self.requests}"
        places = [self.open_calls, call.requests, *([call.opened.calls] if call.opened is not None else [])]
        for place in places:
            place.add(request_id)
        try:
            call.sampled.append(await self.engine.generate(ids, sampling, seed, request_id))
        finally:
            for place in places:
                place.discard(request_id)
        return call.sampled[-1]

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of given tokens. Raises FailureError while weights change."""
        self.check_admission()
        self.scoring += 1
        try:
            return await self.engine.score(sequences)
        finally:
            self.scoring -= 1

    async def _end(self, calls: Collection[str], scoring: bool = False) -> None:
        """Abort `calls` until none is left; with `scoring`, wait for scores too."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while calls or (scoring and self.scoring):
            await self.engine.abort(sorted(calls))
            await asyncio.sleep(0.01)
            if time.monotonic() > deadline:
                raise unavailable(f"{len(calls)} calls did not end within {DRAIN_SECONDS:g} s of an abort")

    async def update(self, path: str, digest: str, version: int, rehearsal: bool = False, back: bool = False) -> None:
        """Replace the weights. rehearsal: by weights that are only scored; nothing is sampled until others come. back: to an earlier
        version, whose weights these are again.

        Raises OmnigymError where they were refused, FailureError where the engine is lost.
        """
        self.check_admission()
        state = self.engine.state
        taken = version == state.weight_version and state.digest not in ("", digest) and not self.rehearsing
        if (version < state.weight_version and not back) or taken:
            raise WeightsRefused(
                f"weights refused: version {version} after {state.weight_version}; a version stands for one set of weights"
            )
        self.updating = True
        try:
            await self._end(self.open_calls, scoring=True)
            await self.engine.update_weights(path, digest, version)
            self.rehearsing = rehearsal
        except WeightsRefused:
            raise
        except BaseException as error:
            state.poisoned = str(error) if isinstance(error, OmnigymError) else f"{type(error).__name__}: {error}"
            raise unavailable(state.poisoned, retryable=False) from error
        finally:
            self.updating = False


def answer_message(raw: str, tools: list[Item] | None, reasoning: bool, call_id: str) -> Item:
    """The assistant's message in `raw`, the text of its turn."""
    turn = parse_turn(raw, tools, reasoning=reasoning)
    message: Item = {"role": "assistant", "content": turn.content}
    if any(turn.reasoning):
        message["reasoning_content"] = "\n".join(turn.reasoning)
    if turn.calls:
        message["tool_calls"] = [
            {"id": f"{call_id}_{k}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for k, (name, arguments) in enumerate(turn.calls)
        ]
    return message
