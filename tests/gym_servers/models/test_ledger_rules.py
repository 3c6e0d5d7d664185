"""Trained ids are sampled ids: extension, broken prefixes, branches, and tokenizers that do not round-trip."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_servers.models.engine import Generation
from gym_servers.models.ledger import Ledger, continued_ids
from gym_servers.models.wire import LedgerExport, pack_ledger, unpack_ledger
from gym_servers.protocol import Item, OmnigymError, Segment
from gym_servers.signing import SignatureError, check_rollout_id, sign_rollout_id

END = "<e>"


class Merging:
    """A tokenizer whose merges are not a bijection: `encode` always takes "ab" as one token (200), a sampler may not.

    Ids below 128 are ASCII characters, 200 is "ab", 201 is the end token.
    """

    end_token = END

    def __init__(self, keep_reasoning: bool = True) -> None:
        self.keep_reasoning = keep_reasoning

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        place = 0
        while place < len(text):
            if text.startswith(END, place):
                ids.append(201)
                place += len(END)
            elif text.startswith("ab", place):
                ids.append(200)
                place += 2
            else:
                ids.append(ord(text[place]))
                place += 1
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join({200: "ab", 201: END}.get(i) or chr(i) for i in ids)

    def render(self, messages: Sequence[Item], generate: bool, raw: dict[int, str]) -> str:
        last_user = max((k for k, m in enumerate(messages) if m["role"] == "user"), default=-1)
        text = ""
        for k, message in enumerate(messages):
            content = raw.get(k, message["content"])
            if not self.keep_reasoning and message["role"] == "assistant" and k < last_user:
                content = content.rsplit("]", 1)[-1]
            text += f"{message['role'][0]}:{content}{END}\n"
        return text + ("a:" if generate else "")


def turn(ledger: Ledger, tokenizer: Merging, messages: list[Item], sampled: list[int], version: int = 0) -> list[Item]:
    prompt = ledger.prompt(messages, tokenizer.render, tokenizer)
    ledger.open_call(1.0)
    text = tokenizer.decode(sampled).removesuffix(END)
    answer = {"role": "assistant", "content": text}
    lp = [-0.5 - k for k in range(len(sampled))]
    ledger.record(messages, answer, prompt, text, Generation(sampled, lp, "stop", (version,)))
    return [*messages, answer]


TOKENS = Merging()


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def test_a_later_turn_extends_the_sampled_ids_and_never_encodes_them_again() -> None:
    ledger = Ledger("r")
    split = [ord("a"), ord("b"), 201]  # "ab" sampled as two tokens: encode would merge them
    messages = turn(ledger, TOKENS, [user("x")], split)
    turn(ledger, TOKENS, [*messages, user("y")], [ord("z"), 201])
    (segment,) = ledger.export().segments
    first = Merging().encode(f"u:x{END}\na:")
    between = Merging().encode(f"\nu:y{END}\na:")
    assert segment.token_ids == first + split + between + [ord("z"), 201]
    assert segment.mask == [0] * len(first) + [1] * 3 + [0] * len(between) + [1] * 2
    assert [lp for lp, m in zip(segment.lp_gen, segment.mask, strict=True) if m] == [-0.5, -1.5, -2.5, -0.5, -1.5]
    assert 200 not in segment.token_ids


def test_a_missing_end_token_is_supplied_unmasked() -> None:
    ledger = Ledger("r")
    messages = turn(ledger, TOKENS, [user("x")], [ord("q")])  # cut by the length limit: no end token sampled
    turn(ledger, TOKENS, [*messages, user("y")], [ord("z"), 201])
    (segment,) = ledger.export().segments
    place = segment.token_ids.index(201, segment.token_ids.index(ord("q")))
    assert segment.mask[place] == 0


def test_three_turns_with_dropped_reasoning_mask_every_sampled_token_once() -> None:
    """pitfalls 12 and 34: a template that drops earlier reasoning breaks the prefix; nothing is trained twice."""
    ledger = Ledger("r")
    messages: list[Item] = []
    sampled: list[list[int]] = []
    for k in range(3):
        ids = [*Merging().encode(f"[think{k}]ans{k}"), 201]
        sampled.append(ids)
        messages = turn(ledger, Merging(keep_reasoning=False), [*messages, user(f"q{k}")], ids)
    export = ledger.export()
    assert [s.break_reason for s in export.segments] == ["", "template_changed_past", "template_changed_past"]
    masked = [[i for i, m in zip(s.token_ids, s.mask, strict=True) if m] for s in export.segments]
    assert masked == sampled
    assert sum(s.sampled for s in export.segments) == export.usage["sampled_tokens"]


def test_two_calls_on_one_node_are_two_segments() -> None:
    ledger = Ledger("r")
    messages = turn(ledger, TOKENS, [user("x")], [ord("k"), 201])
    turn(ledger, TOKENS, [*messages, user("y")], [ord("l"), 201])
    turn(ledger, TOKENS, [*messages, user("z")], [ord("m"), 201])
    first, second = ledger.export().segments
    assert second.break_reason == "branch"
    assert first.sampled == 4
    assert second.sampled == 2


def test_parallel_calls_on_one_node_do_not_share_a_segment() -> None:
    ledger = Ledger("r")
    messages = turn(ledger, TOKENS, [user("x")], [ord("k"), 201])
    asked = [[*messages, user(text)] for text in "yz"]
    prompts = [ledger.prompt(part, TOKENS.render, TOKENS) for part in asked]
    for part, prompt in zip(asked, prompts, strict=True):
        answer = {"role": "assistant", "content": "l"}
        ledger.record(part, answer, prompt, "l", Generation([ord("l"), 201], [-1.0, -1.0], "stop", (0,)))
    first, second = ledger.export().segments
    assert (first.sampled, second.sampled, second.break_reason) == (4, 2, "branch")
    assert second.token_ids == [*prompts[1].ids, ord("l"), 201]


def test_an_edited_past_and_other_weights_start_segments() -> None:
    ledger = Ledger("r")
    messages = turn(ledger, TOKENS, [user("x")], [ord("k"), 201])
    turn(ledger, TOKENS, [{**messages[0], "content": "other"}, messages[1], user("y")], [ord("l"), 201])
    turn(ledger, TOKENS, [*messages, user("y")], [ord("m"), 201], version=1)
    assert [(s.break_reason, s.weight_version) for s in ledger.export().segments] == [
        ("", 0),
        ("new_conversation", 0),
        ("weight_version", 1),
    ]


def test_aborted_calls_are_counted_and_in_no_segment() -> None:
    ledger = Ledger("r")
    prompt = ledger.prompt([user("x")], TOKENS.render, TOKENS)
    ledger.record([user("x")], user(""), prompt, "", Generation([97] * 7, [-1.0] * 7, "abort", (0,)))
    export = ledger.export()
    assert (export.dropped, export.usage["sampled_tokens"], export.segments) == (7, 7, [])


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens but 1"):
        Generation([1, 2], [-1.0], "stop", (0,))


def test_a_rollout_has_one_temperature() -> None:
    ledger = Ledger("r")
    ledger.open_call(1.0)
    with pytest.raises(OmnigymError, match="one temperature"):
        ledger.open_call(0.7)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([97, 98, 99, 200]), min_size=1, max_size=6), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_conversation_masks_exactly_what_was_sampled(turns: list[list[int]], ends: bool) -> None:
    ledger = Ledger("r")
    messages: list[Item] = []
    for k, ids in enumerate(turns):
        messages = turn(ledger, TOKENS, [*messages, user(str(k))], ids + [201] * ends)
    (segment,) = ledger.export().segments
    masked = [i for i, m in zip(segment.token_ids, segment.mask, strict=True) if m]
    assert masked == [i for ids in turns for i in ids + [201] * ends]
    assert Merging().decode(segment.token_ids) == Merging().render(messages, False, {}).removesuffix(
        "\n" if ends else f"{END}\n"
    )


@pytest.mark.parametrize(
    ("before", "whole", "known", "rest"),
    [
        ("u\na<e>\n", "u\na<e>\nv", "u\na<e>", "\nv"),
        ("u\na<e>\n", "u\na<e>\nv", "u\na", "<e>\nv"),
        ("u\na<e>\n", "u\nv", "u\na", None),
        ("u\nacd<e>\n", "u\nacd<e>\nv", "u\na", None),
        ("u\na<e>\n", "u\na<e>\nv", "u\nb", None),
    ],
)
def test_the_rule_by_hand(before: str, whole: str, known: str, rest: str | None) -> None:
    earlier = TOKENS.encode(known)
    ids, reason = continued_ids(earlier, before, whole, TOKENS)
    assert ids == (None if rest is None else earlier + TOKENS.encode(rest))
    assert (reason == "") == (rest is not None)


segments = st.integers(0, 20).flatmap(
    lambda n: st.builds(
        Segment,
        token_ids=st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n),
        mask=st.lists(st.integers(0, 1), min_size=n, max_size=n),
        lp_gen=st.lists(st.floats(-1e3, 0), min_size=n, max_size=n),
        weight_version=st.integers(0, 1000),
        break_reason=st.text(max_size=10),
    )
)


@settings(max_examples=100, deadline=None)
@given(st.lists(segments, max_size=4), st.integers(1, 40))
def test_the_wire_form_round_trips_and_a_cut_one_is_refused(parts: list[Segment], cut: int) -> None:
    export = LedgerExport(rollout_id="r/é", segments=parts, finish_reasons=["stop"])
    packed = pack_ledger(export)
    assert unpack_ledger(packed) == export
    with pytest.raises(OmnigymError):
        unpack_ledger(packed[:-cut])
    with pytest.raises(OmnigymError):
        unpack_ledger(packed + b"x")


@given(st.text(min_size=1, max_size=50))
def test_a_signed_id_comes_back_and_a_changed_one_does_not(text: str) -> None:
    signed = sign_rollout_id(text, "secret")
    assert check_rollout_id(signed, "secret") == text
    assert "/" not in signed
    for bad in (signed + "A", "A" + signed, signed.split(".")[0], ""):
        with pytest.raises(SignatureError):
            check_rollout_id(bad, "secret")
    with pytest.raises(SignatureError):
        check_rollout_id(signed, "other")
