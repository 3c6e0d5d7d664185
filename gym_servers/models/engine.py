"""What a model server needs from an inference engine, and from its tokenizer. Implementations: vllm.py, scripted.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gym_servers.protocol import OmnigymError

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Sampling:
    """How to sample. Everything but the temperature leaves the distribution alone by default.

    top_k: 0 is off. stop: strings that end the text; never for the policy.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """What the engine sampled.

    token_ids: shape [T], the end token included where one was sampled. logprobs: shape [T], natural log of the
    probability under the distribution sampled from. weight_versions: every version that sampled a token of it.
    written: of a turn that two calls made, the positions in token_ids that the server wrote in between, perhaps none.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    weight_versions: tuple[int, ...]
    written: range | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"engine returned {len(self.token_ids)} tokens but {len(self.logprobs)} log-probabilities")

    @property
    def sampled(self) -> int:
        """Number of tokens that the engine sampled."""
        return len(self.token_ids) - len(self.written or ())

    @property
    def mask(self) -> list[int]:
        """Shape [T]; 1 where the token was sampled."""
        written = self.written or range(0)
        return [int(place not in written) for place in range(len(self.token_ids))]

    def then(self, written: Sequence[int], second: Generation) -> Generation:
        """This call, then tokens that the server wrote, then what a second call sampled after them."""
        start = len(self.token_ids)
        return Generation(
            [*self.token_ids, *written, *second.token_ids],
            [*self.logprobs, *[0.0] * len(written), *second.logprobs],
            second.finish_reason,
            tuple(sorted({*self.weight_versions, *second.weight_versions})),
            range(start, start + len(written)),
        )


FLOAT32_SUFFIXES = ("e_score_correction_bias",)
"""Ends of the names of tensors that decide routing: they stay float32 in every sync, for rounding them would let trainer and engine
route differently."""


@dataclass
class EngineState:
    """weight_version: of the weights being served. digest: of the last update ("" before the first)."""

    model: str
    dtype: str
    weight_version: int = 0
    digest: str = ""
    updates: int = 0
    poisoned: str = ""


class WeightsRefused(OmnigymError):
    """An update that was refused before the model was touched: the old weights keep serving."""


class Tokenizer(Protocol):
    """Text to ids and back. `decode` keeps special tokens; `encode` adds none but recognises them in the text."""

    end_token: str
    """Text of the token that ends a turn."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Engine(Protocol):
    """An inference engine. All methods are called from one event loop."""

    state: EngineState
    tokenizer: Tokenizer
    max_context: int
    """Most tokens of prompt and sample together."""
    chat_template: str | None
    """The model's own template (jinja text)."""
    special: tuple[tuple[str, str], ...]
    """Name and text of the special tokens that the template may write (bos_token, ...). begin_of_text: the one that the tokenizer
    puts before any text, where it does; omnigym's own template writes it."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str
    ) -> Generation: ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End these calls: their `generate` returns what was sampled so far, with reason `abort`."""

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence of T tokens the T-1 log-probabilities of its tokens after the first, at temperature 1."""

    async def update_weights(self, path: str, digest: str, version: int) -> None:
        """Load the safetensors file. No call is in flight. Any exception but WeightsRefused means that the engine is lost."""

    async def check(self) -> None:
        """Raises where the engine is dead."""

    async def close(self) -> None: ...
