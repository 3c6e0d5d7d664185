"""A turn taken apart: by hand, as the inverse of the template, on hostile text, and as vLLM does it."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
from conftest import need
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_servers.checkpoints import resolve_model
from gym_servers.models.parsers import parse_turn
from gym_servers.models.template import ChatTemplate
from gym_servers.protocol import OmnigymError

PROPERTIES = {
    "word": {"type": "string"},
    "n": {"type": "integer"},
    "x": {"type": "number"},
    "flag": {"type": "boolean"},
    "items": {"type": "array"},
    "o": {"type": "object"},
    "u": {"type": ["string", "null"]},
    "a": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}}},
    {"type": "function", "function": {"name": "none", "parameters": {"type": "object", "properties": {}}}},
]


def block(name: str = "f", line: str = "\n", **values: str) -> str:
    inner = "".join(f"{line}<parameter={key}>{line}{value}{line}</parameter>" for key, value in values.items())
    return f"<tool_call>{line}<function={name}>{inner}{line}</function>{line}</tool_call>"


WELL_FORMED: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "plain": (block(word="abc", n="3"), [("f", {"word": "abc", "n": 3})]),
    "tight": (block(line="", word="abc", n="3"), [("f", {"word": "abc", "n": 3})]),
    "text before": ("I look.\n" + block(word="a"), [("f", {"word": "a"})]),
    "two": (block(word="a") + "\n" + block(word="b", n="2"), [("f", {"word": "a"}), ("f", {"word": "b", "n": 2})]),
    "no parameters": (block("none"), [("none", {})]),
    "lines": (block(word="a\n b\n\nc"), [("f", {"word": "a\n b\n\nc"})]),
    "outer space": (block(word="  a  "), [("f", {"word": "  a  "})]),
    "a number that is a string": (block(word="42"), [("f", {"word": "42"})]),
    "JSON that is a string": (block(word='{"a": 1}'), [("f", {"word": '{"a": 1}'})]),
    "number": (block(x="-1.5"), [("f", {"x": -1.5})]),
    "boolean": (block(flag="true"), [("f", {"flag": True})]),
    "Python's boolean": (block(flag="False"), [("f", {"flag": False})]),
    "array": (block(items='[1, "a", null]'), [("f", {"items": [1, "a", None]})]),
    "object": (block(o='{"k": {"z": [1]}}'), [("f", {"o": {"k": {"z": [1]}}})]),
    "null of two types": (block(u="null"), [("f", {"u": None})]),
    "the string null": (block(word="null"), [("f", {"word": "null"})]),
    "any of, null": (block(a="null"), [("f", {"a": None})]),
    "any of, integer": (block(a="7"), [("f", {"a": 7})]),
    "other scripts": (block(word='naïve 日本 "q" \\ </x>'), [("f", {"word": 'naïve 日本 "q" \\ </x>'})]),
    "angles": (block(word="a < b > c"), [("f", {"word": "a < b > c"})]),
    "not declared": (block(zzz="5"), [("f", {"zzz": "5"})]),
    "unknown function": (block("other", word="a"), [("other", {"word": "a"})]),
    "not an integer": (block(n="abc"), [("f", {"n": "abc"})]),
    "empty": (block(word=""), [("f", {"word": ""})]),
    "a tag in a value": (block(word="<tool_call>"), [("f", {"word": "<tool_call>"})]),
    "a closing tag in a value": (block(word="</tool_call>"), [("f", {"word": "</tool_call>"})]),
    "the last of two": (
        block(n="1").replace("</function>", "<parameter=n>2</parameter></function>"),
        [("f", {"n": 2})],
    ),
    "a start without its end": ("<tool_call>\n<function=f>\n" + block(word="a"), [("f", {"word": "a"})]),
    "no call": ("just text", []),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_calls_by_hand(name: str) -> None:
    text, calls = WELL_FORMED[name]
    found = parse_turn(text, TOOLS, reasoning=False).calls
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize(
    "text",
    [
        block(word="a")[:-12],  # cut off
        block(word="a")[:-24],
        block(word="a").replace("<tool_call>\n", ""),
        "<tool_call>\n{}\n</tool_call>",
        block("none").replace("\n</function>", "\n</function>\n<function=none>\n</function>"),
        block("none").replace("<function", "so <function"),
        block(word="a").replace("<parameter=word>", "<parameter=>"),
        block("").replace("<function=>", "<function= >"),
    ],
)
def test_what_is_malformed_stays_text(text: str) -> None:
    turn = parse_turn(text, TOOLS, reasoning=False)
    assert (turn.content, turn.calls) == (text, [])


def test_text_around_calls_is_kept_and_without_tools_all_is_text() -> None:
    text = f"before {block('none')} between {block('none')} after"
    assert parse_turn(text, TOOLS, reasoning=False).content == "before  between  after"
    assert parse_turn(text, None, reasoning=False).content == text


def test_reasoning() -> None:
    turn = parse_turn(f"<think>a{block('none')}</think>b{block('none')}", TOOLS, reasoning=True)
    assert (turn.reasoning, turn.content, turn.calls) == ([f"a{block('none')}"], "b", [("none", "{}")])
    assert parse_turn("<think>never closed", TOOLS, reasoning=True).reasoning == ["never closed"]
    assert parse_turn("<think>a</think>b", TOOLS, reasoning=False).content == "<think>a</think>b"


values = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=20)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(values, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values, st.integers(-(2**53), 2**53), st.dictionaries(values, trees, max_size=3), values)
def test_the_parser_is_the_template_s_inverse(word: str, n: int, tree: dict[str, Any], said: str) -> None:
    arguments = {"word": word, "n": n, "o": tree}
    called = {"function": {"name": "f", "arguments": json.dumps(arguments)}}
    message = {"role": "assistant", "content": said.strip(), "tool_calls": [called]}
    text = ChatTemplate(None).render([message], TOOLS)
    turn = parse_turn(
        text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n"), TOOLS, reasoning=False
    )
    assert (turn.content, [(name, json.loads(given)) for name, given in turn.calls]) == (
        said.strip(),
        [("f", arguments)],
    )


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "f>",
    "</function>",
    "<parameter=",
    "n>",
    "</parameter>",
    "x",
    "\n",
    ">",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_text_is_taken_apart_without_loss(pieces: list[str]) -> None:
    text = "".join(pieces)
    turn = parse_turn(text, TOOLS, reasoning=True)
    if not turn.calls:
        assert turn.content == text
    for _, arguments in turn.calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 200_000,
        "<tool_call><function=f>" * 100_000,
        "<tool_call><function=f><parameter=n>" * 60_000,
        "<tool_call><function=f><parameter=n>" * 60_000 + "</parameter>",
        "<tool_call><function=f><parameter=" * 60_000 + "</parameter>",
        "<tool_call><function=f>" + "<parameter=n>1</parameter>" * 80_000,
        "<think>" * 300_000,
        block(o="[" * 1_000_000),
        block(o='{"a":' * 300_000),
    ],
)
def test_a_hostile_text_of_two_megabytes_takes_linear_time(text: str) -> None:
    parse_turn(text, TOOLS, reasoning=True)


@pytest.mark.slow
def test_vllm_s_parser_finds_the_same_calls() -> None:
    need("vllm", importlib.util.find_spec("vllm") is not None, "vLLM is not installed")
    try:
        folder = resolve_model("smollm2-135m")
    except OmnigymError as error:
        need("model", False, str(error))
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "?"}], tools=TOOLS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parser = ToolParserManager.get_tool_parser("qwen3_coder")

    def theirs(text: str) -> list[tuple[str, dict[str, Any]]]:
        found = parser(tokenizer, request.tools).extract_tool_calls(text, request)
        return [(call.function.name, json.loads(call.function.arguments)) for call in found.tool_calls]

    for name, (text, calls) in WELL_FORMED.items():
        assert theirs(text) == calls, name
    # differences that the module's docstring names: if one is gone, say so there
    assert theirs(block(word="a")[:-12]) == [("f", {"word": "a"})]
    assert theirs(block(word="a").replace("<tool_call>\n", "")) == [("f", {"word": "a"})]
    assert theirs(block(n=str(10**30))) == [("f", {"n": 10**30})]
