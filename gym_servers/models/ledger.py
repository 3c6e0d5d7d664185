"""What one rollout sampled: a tree of calls, and the segments it makes (spec/algorithm.md, section 4). Pure.

A call whose messages continue an earlier call's messages and answer extends that node; any other starts a root. Where it
extends, its prompt is the node's ids plus the encoding of the text that is new, so sampled tokens are never re-tokenised.
Where the template changed the past (dropped reasoning, edited context), the prompt is encoded afresh: a new segment.
Every sampled token of a finished call is masked 1 in exactly one segment; those of aborted calls are counted as dropped.
A turn that a client brings with its own ids (NeMo-Gym's token fields) is continued on those ids, and never masked 1.

Assistant turns are recognised by answer and tool calls, without reasoning: a client that does not send reasoning back still
continues its own rollout, and the template decides what of the reasoning stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from gym_servers.models.engine import Generation, Tokenizer
from gym_servers.models.parsers import split_reasoning
from gym_servers.models.template import arguments_of, text_of
from gym_servers.models.wire import LedgerExport
from gym_servers.protocol import Item, OmnigymError, Segment

MAX_CALLS = 1024
MAX_TOKENS = 8 << 20


class LedgerFull(OmnigymError):
    """A rollout with more calls or tokens than a ledger holds."""


@dataclass(eq=False)
class Node:
    """One finished call. key: of its messages and answer. raw: the assistant's turn as text, without the end token.

    position: index of that turn among the messages. parent: the call it extends as a conversation.
    extends: whether prompt_ids starts with the parent's prompt and sampled ids.
    """

    key: bytes
    position: int
    raw: str
    prompt_ids: list[int]
    generation: Generation
    parent: Node | None
    extends: bool
    break_reason: str
    number: int

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.generation.token_ids


@dataclass(frozen=True)
class Prompt:
    """What to send to the engine for a call, and where it stands in the tree."""

    ids: list[int]
    parent: Node | None
    extends: bool
    break_reason: str


@dataclass(frozen=True)
class Brought:
    """An assistant turn whose tokens the client sent with it. ids: prompt and answer. raw: as in Node."""

    ids: list[int]
    raw: str


Render = Callable[[Sequence[Item], bool, dict[int, str]], str]
"""(messages, with the generation prompt?, raw assistant texts by message index) -> text."""


def canonical(message: Item) -> bytes:
    """What makes two messages the same: role, text (an assistant's without reasoning and outer space), tool calls."""
    role = message.get("role")
    text = text_of(message.get("content"))
    if role == "assistant":
        text = split_reasoning(text)[1].strip()
    calls = [[call.get("function", {}).get("name"), arguments_of(call)] for call in message.get("tool_calls") or []]
    return orjson.dumps([role, text, calls], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def chain(messages: Sequence[Item], start: bytes = b"") -> list[bytes]:
    """Key of every prefix of `messages`: entry i belongs to the first i+1."""
    keys = []
    for message in messages:
        start = hashlib.sha256(start + canonical(message)).digest()
        keys.append(start)
    return keys


def continued_ids(
    earlier: Sequence[int], before: str, whole: str, tokenizer: Tokenizer
) -> tuple[list[int] | None, str]:
    """Ids of `whole` that start with `earlier`, or None and why there are none.

    before: rendering up to the last assistant turn. whole: rendering of all messages with the generation prompt.
    """
    if not whole.startswith(before):
        return None, "template_changed_past"
    known = tokenizer.decode(earlier)
    if not before.startswith(known):
        return None, "text_differs"
    # what the template writes after the sampled turn: white space, and the end token where none was sampled
    if before[len(known) :].strip() not in ("", tokenizer.end_token):
        return None, "text_differs"
    return [*earlier, *tokenizer.encode(whole[len(known) :])], ""


def splice_prefix(
    earlier: Sequence[int], before: Sequence[int], whole: Sequence[int], end_id: int | None
) -> list[int] | None:
    """The same on ids, for a client that brings its own: `earlier` in place of the template's re-encoding of it.

    before, whole: the template's ids up to the last assistant turn, and of everything. None: the template changed the past,
    so a new segment starts. Raises ValueError where there is no end token to join at.
    """
    if not earlier:
        return list(whole)
    if end_id is None:
        raise ValueError("cannot splice: the tokenizer has no end token")
    join = max((i for i, token in enumerate(before) if token == end_id), default=-1)
    if join < 0:
        raise ValueError(f"cannot splice: no end token {end_id} in the template's prefix")
    if join >= len(whole) or end_id not in whole[: len(before)]:
        raise ValueError(f"cannot splice: no end token {end_id} in the template's ids")
    if list(whole[: len(before)]) != list(before):
        return None
    kept = earlier[:-1] if earlier[-1] == end_id else earlier
    return [*kept, *whole[join:]]


@dataclass
class Ledger:
    """The calls of one rollout. Not thread-safe: one event loop owns it."""

    rollout_id: str
    nodes: list[Node] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "sampled_tokens": 0, "requests": 0})
    calls: int = 0
    tokens: int = 0
    dropped: int = 0
    truncation_reason: Literal["", "max_tokens", "context"] = ""
    finish_reasons: list[str] = field(default_factory=list)
    temperature: float | None = None
    _by_key: dict[bytes, Node] = field(default_factory=dict)

    def open_call(self, temperature: float) -> int:
        """Number of the next call. Raises LedgerFull, and OmnigymError for a second temperature."""
        if self.calls >= MAX_CALLS or self.tokens >= MAX_TOKENS:
            raise LedgerFull(
                f"rollout {self.rollout_id!r} has {self.calls} calls and {self.tokens} tokens; a ledger holds "
                f"{MAX_CALLS} calls and {MAX_TOKENS} tokens: end the rollout earlier"
            )
        if self.temperature is not None and temperature != self.temperature:
            raise OmnigymError(
                f"rollout {self.rollout_id!r} samples at temperature {self.temperature}, this call asks for {temperature}: "
                "a rollout has one temperature, since the trainer applies it too"
            )
        self.temperature = temperature
        self.calls += 1
        return self.calls - 1

    def prompt(
        self,
        messages: Sequence[Item],
        render: Render,
        tokenizer: Tokenizer,
        brought: Mapping[int, Brought] | None = None,
    ) -> Prompt:
        """Ids to send for `messages`. brought: by message index, turns of which the ledger may know nothing."""
        brought = brought or {}
        keys = chain(messages)
        parent: Node | None = None
        for index in range(len(messages) - 1, -1, -1):
            if messages[index].get("role") == "assistant" and (parent := self._by_key.get(keys[index])) is not None:
                break
        raw = {position: turn.raw for position, turn in brought.items()}
        node = parent
        while node is not None:
            raw[node.position] = node.raw
            node = node.parent
        whole = render(messages, True, raw)
        if parent is None:
            reason = "" if not self.nodes else "new_conversation"
            known: list[int] | None = None
            if brought:
                last = max(brought)
                known, _ = continued_ids(brought[last].ids, render(messages[: last + 1], False, raw), whole, tokenizer)
            return Prompt(tokenizer.encode(whole) if known is None else known, None, False, reason)
        # an assistant turn that was not sampled here may stand after the parent: its text is part of what is new
        before = render(messages[: parent.position + 1], False, raw)
        ids, reason = continued_ids(parent.ids, before, whole, tokenizer)
        if ids is None:
            return Prompt(tokenizer.encode(whole), parent, False, reason)
        return Prompt(ids, parent, True, "")

    def record(self, messages: Sequence[Item], answer: Item, prompt: Prompt, raw: str, generation: Generation) -> None:
        """Enter a call that ended. An aborted one is only counted."""
        self.usage["requests"] += 1
        self.usage["prompt_tokens"] += len(prompt.ids)
        if generation.written is not None:
            self.usage["requests"] += 1
            self.usage["prompt_tokens"] += len(prompt.ids) + generation.written.stop
        self.usage["sampled_tokens"] += generation.sampled
        self.finish_reasons.append(generation.finish_reason)
        if generation.finish_reason == "abort" or not generation.token_ids:
            self.dropped += generation.sampled
            return
        self.tokens += len(prompt.ids) + len(generation.token_ids)
        node = Node(
            key=chain([answer], chain(messages)[-1] if messages else b"")[-1],
            position=len(messages),
            raw=raw,
            prompt_ids=prompt.ids,
            generation=generation,
            parent=prompt.parent,
            extends=prompt.extends,
            break_reason=prompt.break_reason,
            number=len(self.nodes),
        )
        self.nodes.append(node)
        self._by_key[node.key] = node

    def export(self) -> LedgerExport:
        """Segments in the order in which they began."""
        segments: list[Segment] = []
        tail: dict[int, int] = {}  # node number -> segment that ends with it
        for node in self.nodes:
            new = node.generation
            (version,) = new.weight_versions
            at = tail.pop(node.parent.number, None) if node.parent is not None and node.extends else None
            if at is not None and segments[at].weight_version == version:
                segment = segments[at]
                added = len(node.prompt_ids) - len(segment.token_ids)
                segment.token_ids.extend(node.prompt_ids[len(segment.token_ids) :])
                segment.mask.extend([0] * added)
                segment.lp_gen.extend([0.0] * added)
            else:
                reason = node.break_reason
                if node.extends:
                    reason = "branch" if at is None else "weight_version"
                segment = Segment(
                    token_ids=list(node.prompt_ids),
                    mask=[0] * len(node.prompt_ids),
                    lp_gen=[0.0] * len(node.prompt_ids),
                    weight_version=version,
                    break_reason=reason,
                )
                at = len(segments)
                segments.append(segment)
            segment.token_ids.extend(new.token_ids)
            segment.mask.extend(new.mask)
            segment.lp_gen.extend(new.logprobs)
            tail[node.number] = at
        for segment in segments:
            if not len(segment.token_ids) == len(segment.mask) == len(segment.lp_gen):
                raise AssertionError(f"rollout {self.rollout_id!r}: segment arrays are out of step")
        if sum(s.sampled for s in segments) + self.dropped != self.usage["sampled_tokens"]:
            raise AssertionError(f"rollout {self.rollout_id!r}: masked plus dropped tokens are not the sampled ones")
        return LedgerExport(
            rollout_id=self.rollout_id,
            segments=segments,
            usage=dict(self.usage),
            finish_reasons=list(self.finish_reasons),
            truncated=bool(self.truncation_reason),
            truncation_reason=self.truncation_reason,
            dropped=self.dropped,
            calls=self.calls,
            temperature=self.temperature,
        )
