"""Tokens are recorded where they are sampled: the ledger of one rollout.

Calls form a tree. A call whose messages continue those of an earlier call extends its tokens: they are never tokenised again.
Rule (spec section 4): if the rendering of all messages starts, as text, with the rendering up to the last assistant turn, and
that equals decode(ledger ids) up to a missing end token, the new ids are ledger ids + encode(the rest). Otherwise (the
template dropped reasoning, the client edited the past, a second call continues the same node) a new segment starts. Either
way every sampled token has mask 1 exactly once, in the segment that sampled it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gym_servers.models.wire import LedgerExport
from gym_servers.protocol import OmnigymError, Segment

Message = dict[str, Any]
MAX_TOKENS = 4_000_000


class ChatTokenizer(Protocol):
    """What the ledger needs of a tokenizer and its chat template."""

    end_texts: tuple[str, ...]
    """Texts of the tokens that end a turn."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens included."""
        ...

    def render(self, messages: list[Message], tools: list[dict[str, Any]] | None, generate: bool) -> str:
        """The template's text; with the opening of an assistant turn where `generate`."""
        ...


class LedgerFull(OmnigymError):
    """A rollout sampled more than a ledger holds."""


@dataclass
class _Growing:
    token_ids: list[int]
    mask: list[int]
    lp_gen: list[float]
    weight_version: int
    break_reason: str


@dataclass
class _Node:
    """A finished call: its messages, the answer included, and where its tokens end."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    segment: int
    length: int


@dataclass
class Prompt:
    """What to send to the engine for one call. node: the call that it extends; None starts a segment."""

    token_ids: list[int]
    node: _Node | None
    break_reason: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None


def _comparable(messages: list[Message]) -> list[Message]:
    """Messages without fields that are absent in meaning (None, empty tool_calls), as clients drop or add those."""
    return [{key: value for key, value in message.items() if value not in (None, [])} for message in messages]


def extension(previous: str, everything: str, decoded: str, end_texts: tuple[str, ...]) -> str | None:
    """The text to add behind `decoded`, or None where the rule does not hold.

    previous: rendering up to the last assistant turn; everything: rendering of all; decoded: text of the ledger's ids.
    """
    if not everything.startswith(previous) or not everything.startswith(decoded) or not previous.startswith(decoded):
        return None
    missing = previous[len(decoded) :].strip()
    return everything[len(decoded) :] if missing == "" or missing in end_texts else None


@dataclass
class Ledger:
    """The calls of one rollout."""

    rollout_id: str
    tokenizer: ChatTokenizer
    _nodes: list[_Node] = field(default_factory=list)
    _segments: list[_Growing] = field(default_factory=list)
    _finish_reasons: list[str] = field(default_factory=list)
    _usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "sampled_tokens": 0, "requests": 0})
    _truncation: Literal["", "max_tokens", "context"] = ""
    _dropped: int = 0

    @property
    def calls(self) -> int:
        """Calls so far; the number of the next one."""
        return self._usage["requests"]

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> Prompt:
        """Token ids of a call's prompt, by the rule."""
        messages = _comparable(messages)
        everything = self.tokenizer.render(messages, tools, True)
        node = max(
            (n for n in self._nodes if n.tools == tools and messages[: len(n.messages)] == n.messages),
            key=lambda n: len(n.messages),
            default=None,
        )
        if node is None:
            reason = "" if not self._nodes else "new conversation"
            return Prompt(self.tokenizer.encode(everything), None, reason, messages, tools)
        segment = self._segments[node.segment]
        ids = segment.token_ids[: node.length]
        previous = self.tokenizer.render(messages[: len(node.messages)], tools, False)
        rest = extension(previous, everything, self.tokenizer.decode(ids), self.tokenizer.end_texts)
        if rest is None:
            return Prompt(self.tokenizer.encode(everything), None, "template changed the past", messages, tools)
        token_ids = ids + self.tokenizer.encode(rest)
        if node.length != len(segment.token_ids):
            return Prompt(token_ids, None, "branch", messages, tools)
        return Prompt(token_ids, node, "", messages, tools)

    def record(
        self,
        prompt: Prompt,
        answer: Message,
        token_ids: list[int],
        logprobs: list[float],
        finish_reason: str,
        weight_version: int,
    ) -> None:
        """Enter a finished call. Raises ValueError on arrays of different lengths, LedgerFull past the bound."""
        if len(token_ids) != len(logprobs):
            raise ValueError(f"{len(token_ids)} sampled tokens but {len(logprobs)} log-probabilities")
        self._count(prompt, len(token_ids), finish_reason)
        node, reason = prompt.node, prompt.break_reason
        if node is not None and self._segments[node.segment].weight_version != weight_version:
            node, reason = None, "weights changed"
        if node is not None and node.length != len(self._segments[node.segment].token_ids):
            node, reason = None, "branch"  # a parallel call extended the node first
        if node is None:
            self._segments.append(_Growing([], [], [], weight_version, reason))
            index = len(self._segments) - 1
        else:
            index = node.segment
        segment = self._segments[index]
        if sum(len(s.token_ids) for s in self._segments) + len(prompt.token_ids) + len(token_ids) > MAX_TOKENS:
            raise LedgerFull(f"rollout '{self.rollout_id}': more than {MAX_TOKENS} tokens in its ledger")
        carried = prompt.token_ids[len(segment.token_ids) :]
        segment.token_ids += carried + token_ids
        segment.mask += [0] * len(carried) + [1] * len(token_ids)
        segment.lp_gen += [0.0] * len(carried) + logprobs
        if finish_reason == "length":
            self._truncation = "max_tokens"
        self._nodes.append(
            _Node([*prompt.messages, *_comparable([answer])], prompt.tools, index, len(segment.token_ids))
        )

    def drop(self, prompt: Prompt, sampled: int, finish_reason: str) -> None:
        """Count a call whose tokens are in no segment: it was aborted, or straddled two weight versions."""
        self._count(prompt, sampled, finish_reason)
        self._dropped += sampled

    def out_of_context(self) -> None:
        """The prompt left no room for an answer."""
        self._truncation = "context"

    def _count(self, prompt: Prompt, sampled: int, finish_reason: str) -> None:
        self._usage["prompt_tokens"] += len(prompt.token_ids)
        self._usage["sampled_tokens"] += sampled
        self._usage["requests"] += 1
        self._finish_reasons.append(finish_reason)

    def export(self) -> LedgerExport:
        """Everything so far."""
        return LedgerExport(
            rollout_id=self.rollout_id,
            segments=[
                Segment(
                    token_ids=list(s.token_ids),
                    mask=list(s.mask),
                    lp_gen=list(s.lp_gen),
                    weight_version=s.weight_version,
                    break_reason=s.break_reason,
                )
                for s in self._segments
            ],
            usage=dict(self._usage),
            finish_reasons=list(self._finish_reasons),
            truncated=bool(self._truncation),
            truncation_reason=self._truncation,
            dropped=self._dropped,
        )
