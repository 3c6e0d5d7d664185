"""Trained ids are the sampled ids, over real HTTP, whoever the agent is (pitfalls 11, 12, 13, 34).

The engine samples spellings that its tokenizer would never encode: whatever decodes and encodes again on the way loses them. Proof
of the text: what the ids decode to, taken apart by the parsers, is what was served.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import openai
import pytest
from conftest import need
from fastapi import FastAPI, Request
from live_server import SECRET, Recording, World, masked, model_world, serving

from gym_servers.checkpoints import resolve_model
from gym_servers.models.engine import Tokenizer
from gym_servers.models.parsers import parse_turn
from gym_servers.models.scripted import Asked, CodePoints
from gym_servers.models.wire import LedgerExport
from gym_servers.protocol import Item, OmnigymError, Rollout
from gym_servers.rollouts import Collector, RolloutRequest

PARAMETERS = {"type": "object", "properties": {"word": {"type": "string"}, "n": {"type": "integer"}}}
TOOL = {"type": "function", "name": "lookup", "parameters": PARAMETERS}
CHAT_TOOL = {"type": "function", "function": {"name": "lookup", "parameters": PARAMETERS}}


def call(word: str, n: int) -> str:
    return (
        f"<tool_call>\n<function=lookup>\n<parameter=word>\n{word}\n</parameter>\n<parameter=n>\n{n}\n</parameter>\n"
        "</function>\n</tool_call>"
    )


TURNS = [
    f"abba the cab, naïve 日本\n{call('abab', 3)}",
    call("the  the", -1) + call("{}", 0).replace("\n", ""),
    "  the answer: abab.\n",
]


def spelled(tokenizer: Tokenizer, text: str, seed: int) -> list[int]:
    """Ids that decode to `text` and are seldom its encoding: pieces of it, encoded one by one, and the end token."""
    draw = random.Random(seed)
    ids: list[int] = []
    place = 0
    while place < len(text):
        size = draw.randint(1, 4)
        ids += tokenizer.encode(text[place : place + size])
        place += size
    return ids + tokenizer.encode(tokenizer.end_token)


class Spelling(Recording):
    """Says `turns` in such spellings."""

    def __init__(self, tokenizer: Tokenizer, turns: Sequence[str] = TURNS) -> None:
        super().__init__(self.say, tokenizer=tokenizer)
        self.turns = turns

    def say(self, asked: Asked) -> list[int]:
        return spelled(self.tokenizer, self.turns[min(asked.turn, len(self.turns) - 1)], asked.seed)


def merging() -> Tokenizer:
    return CodePoints(merges=["ab", "the", "the ", "<tool_call>", "</", "er>", "\n<", "  "])


def real() -> Tokenizer:
    try:
        folder = str(resolve_model("smollm2-135m"))
    except OmnigymError as error:
        need("model", False, str(error))
    from gym_servers.models.transformers_tokenizer import CheckpointTokenizer

    return CheckpointTokenizer(folder)


@pytest.fixture(params=[merging, real], ids=["merges", "smollm2"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Callable[[], Tokenizer] = request.param
    return made()


@pytest.fixture(scope="module")
def environment() -> Iterator[str]:
    app = FastAPI()

    @app.post("/seed_session")
    async def seed() -> Any:
        return {}

    @app.post("/lookup")
    async def lookup(request: Request) -> Any:
        return {"found": (await request.json())["word"] + "ab the"}

    @app.post("/verify")
    async def verify() -> Any:
        return {"reward": 1.0}

    with serving(app) as url:
        yield url


def check(export: LedgerExport, engine: Recording, number: int, breaks: Sequence[str] = ("",)) -> list[str]:
    """Every id that the engine sampled in its last `number` calls is masked 1 once, with the engine's log-probability; the
    other ids of a segment are the engine's prompt. Returns the texts of the turns, ends included.
    """
    calls = engine.calls[-number:]
    assert [segment.break_reason for segment in export.segments] == list(breaks)
    assert [i for part in masked(export) for i in part] == [i for _, g in calls for i in g.token_ids]
    lp = [p for s in export.segments for p, m in zip(s.lp_gen, s.mask, strict=True) if m]
    assert lp == [p for _, g in calls for p in g.logprobs]
    assert export.usage["sampled_tokens"] == len(lp)
    whole = {tuple(prompt + generation.token_ids) for prompt, generation in calls}
    assert all(tuple(segment.token_ids) in whole for segment in export.segments)
    texts = [engine.tokenizer.decode(g.token_ids) for _, g in calls]
    respelled = [engine.tokenizer.encode(text) != g.token_ids for text, (_, g) in zip(texts, calls, strict=True)]
    assert all(respelled), "the engine was meant to sample what encode never gives"
    return texts


def turns_of(output: Sequence[Item]) -> list[list[Any]]:
    """The sampled items of each turn, in comparable form."""
    turns: list[list[Any]] = [[]]
    for item in output:
        if item["type"] == "function_call":
            turns[-1].append((item["name"], json.loads(item["arguments"])))
        elif item["type"] == "message":
            turns[-1].insert(0, item["content"][0]["text"])
        elif turns[-1]:
            turns.append([])
    return turns


def parsed(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[Any]]:
    """The same, from the raw text by the parsers."""
    found = []
    for text in texts:
        turn = parse_turn(text.removesuffix(tokenizer.end_token), [CHAT_TOOL], reasoning=False)
        calls = [(name, json.loads(arguments)) for name, arguments in turn.calls]
        found.append([turn.content, *calls] if turn.content else calls)
    return found


def test_the_tool_loop_s_rollouts(tokenizer: Tokenizer, environment: str) -> None:
    engine = Spelling(tokenizer)
    row = {"responses_create_params": {"input": "look up ab the", "tools": [TOOL]}}
    with model_world(engine) as world:
        collector = Collector({"env": environment}, world.url, secret=SECRET, concurrency=4)
        requests = [RolloutRequest(row, f"t{k}", "env", f"g{k}", 0, seed=10_000 * k) for k in range(12)]

        async def run() -> list[Rollout]:
            return [rollout async for rollout in collector.collect(requests)]

        rollouts = asyncio.run(run())
    calls = list(engine.calls)
    by_seed = {tuple(g.logprobs): (prompt, g) for prompt, g in calls}
    assert len(by_seed) == 36  # all rollouts have other spellings
    for rollout in rollouts:
        (segment,) = rollout.segments
        assert (rollout.reward, rollout.steps, len(rollout.tool_calls)) == (1.0, 3, 3)
        of_rollout = [
            (prompt, g)
            for prompt, g in calls
            if segment.token_ids[: len(prompt)] == prompt
            and segment.token_ids[len(prompt) : len(prompt) + len(g.token_ids)] == g.token_ids
        ]
        engine.calls = sorted(of_rollout, key=lambda pair: len(pair[0]))
        export = LedgerExport(rollout_id="r", segments=rollout.segments, usage=rollout.usage)
        texts = check(export, engine, 3)
        assert [text.removesuffix(tokenizer.end_token) for text in texts] == TURNS
        assert turns_of(rollout.output) == parsed(texts, tokenizer)


def agent_of_chat(client: openai.OpenAI) -> list[list[Any]]:
    """A plain agent of the chat form, which knows nothing of tokens."""
    messages: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab the"}]
    turns = []
    while True:
        answer = client.chat.completions.create(model="policy", messages=messages, tools=[CHAT_TOOL], seed=7)  # type: ignore[list-item]
        message = answer.choices[0].message
        calls = message.tool_calls or []
        said = [(c.function.name, json.loads(c.function.arguments)) for c in calls]  # type: ignore[union-attr]
        turns.append([message.content, *said] if message.content else said)
        if not calls:
            return turns
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": c.id, "content": "ab the"} for c in calls]


def agent_of_responses(client: openai.OpenAI) -> list[list[Any]]:
    """A plain agent of the Responses form."""
    items: list[Any] = [{"role": "user", "content": "ab the"}]
    output: list[Item] = []
    while True:
        answer = client.responses.create(model="policy", input=items, instructions="be brief", tools=[TOOL])  # type: ignore[list-item]
        output += [item.model_dump() for item in answer.output]
        items += answer.output
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return turns_of(output)
        for item in calls:
            made = {"type": "function_call_output", "call_id": item.call_id, "output": "ab the"}
            items.append(made)
            output.append(made)


@pytest.mark.parametrize("agent", [agent_of_chat, agent_of_responses])
def test_the_plain_openai_client(tokenizer: Tokenizer, agent: Callable[[openai.OpenAI], list[list[Any]]]) -> None:
    engine = Spelling(tokenizer)
    with model_world(engine) as world, openai.OpenAI(base_url=world.base(), api_key="-", max_retries=0) as client:
        turns = agent(client)
        export = world.close()
    texts = check(export, engine, 3)
    assert turns == parsed(texts, tokenizer)
    assert turns[0][0] == "abba the cab, naïve 日本"
    assert turns[1] == [("lookup", {"word": "the  the", "n": -1}), ("lookup", {"word": "{}", "n": 0})]


@pytest.mark.parametrize("sends_reasoning_back", [True, False])
def test_three_turns_with_dropped_reasoning(tokenizer: Tokenizer, sends_reasoning_back: bool) -> None:
    """Each turn: think and call, then think and answer. A user's message drops what came before it: another segment."""
    thoughts = [f"{word} ab the?</think>{call(word, n)}" for n, word in enumerate(("the ab", "abab", "cab"))]
    answers = [f"so{n}</think>the ab {n}" for n in range(3)]
    engine = Spelling(tokenizer, [turn for pair in zip(thoughts, answers, strict=True) for turn in pair])
    messages: list[Item] = []

    def ask(world: World) -> Item:
        message = world.chat(messages, tools=[CHAT_TOOL], chat_template_kwargs={"reasoning": True})
        sent = dict(message)
        if not sends_reasoning_back:
            del sent["reasoning_content"]
        messages.append(sent)
        return message

    with model_world(engine) as world:
        for n in range(3):
            messages.append({"role": "user", "content": f"the {n} ab"})
            first = ask(world)
            assert (first["reasoning_content"], first["content"]) == (thoughts[n].split("</think>")[0], "")
            messages.append({"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "ab"})
            second = ask(world)
            assert (second["reasoning_content"], second["content"]) == (f"so{n}", f"the ab {n}")
        export = world.close()
    check(export, engine, 6, ["", "template_changed_past", "template_changed_past"])
    ends = [len(g.token_ids) for _, g in engine.calls]
    assert [segment.sampled for segment in export.segments] == [sum(ends[k : k + 2]) for k in (0, 2, 4)]
    last = engine.tokenizer.decode(export.segments[2].token_ids)
    assert "the ab 0" in last
    assert "so0" not in last


def test_an_answer_that_was_cut_is_continued_with_an_end_that_is_not_trained(tokenizer: Tokenizer) -> None:
    """Pitfall 13: the end token that the next prompt needs has no log-probability of the sampler's."""
    engine = Spelling(tokenizer, ["abab the ab", "the end"])
    with model_world(engine) as world:
        messages = [{"role": "user", "content": "?"}]
        messages += [world.chat(messages, max_tokens=3), {"role": "user", "content": "go on"}]
        world.chat(messages)
        export = world.close()
    (segment,) = export.segments
    place = len(engine.calls[0][0]) + 3
    assert segment.token_ids[place] == tokenizer.encode(tokenizer.end_token)[0]
    assert (segment.mask[place - 1], segment.mask[place], segment.lp_gen[place]) == (1, 0, 0.0)
    assert masked(export) == [engine.calls[0][1].token_ids + engine.calls[1][1].token_ids]


def test_an_answer_cut_inside_a_character_is_continued_too() -> None:
    """The bytes of a character are tokens of their own: what was sampled of one is kept and trained."""
    engine = Spelling(real(), ["日本語", "the end"])
    with model_world(engine) as world:
        for most in range(1, 8):
            messages = [{"role": "user", "content": "?"}]
            name = f"r{most}"
            messages += [world.chat(messages, name, max_tokens=most), {"role": "user", "content": "go on"}]
            world.chat(messages, name)
            (first, second), export = engine.calls[-2:], world.close(name)
            assert len(export.segments) == 1
            assert masked(export) == [first[1].token_ids + second[1].token_ids]
        assert any("\ufffd" in engine.tokenizer.decode(g.token_ids) for _, g in engine.calls)


def test_token_fields_that_come_back_are_continued_on(tokenizer: Tokenizer) -> None:
    """NeMo-Gym's fields, at a server that did not sample those turns: its prompt starts with the very ids."""
    first, second = Spelling(tokenizer), Spelling(tokenizer)
    row: Item = {"tools": [TOOL], "return_token_ids": True}
    items: list[Item] = [{"role": "user", "content": "ab the"}]
    with model_world(first) as world:
        for _ in range(2):
            answer = world.post("/v1/responses", None, input=items, **row)
            items += answer["output"]
            bearers = [item for item in answer["output"] if "generation_token_ids" in item]
            assert bearers == [answer["output"][-1]]
            prompt, generation = first.calls[-1]
            assert bearers[0]["prompt_token_ids"] == prompt
            assert bearers[0]["generation_token_ids"] == generation.token_ids
            assert bearers[0]["generation_log_probs"] == generation.logprobs
            calls = [item for item in answer["output"] if item["type"] == "function_call"]
            items += [{"type": "function_call_output", "call_id": c["call_id"], "output": "the ab"} for c in calls]
    # the first server's own second prompt was built on the ids that came back
    assert first.calls[1][0][: len(sum_of(first.calls[0]))] == sum_of(first.calls[0])
    with model_world(second) as world:
        world.post("/v1/responses", "r", input=items, **row)
        items += [{"role": "user", "content": "and?"}]
        export = world.close()
        assert second.calls[0][0][: len(sum_of(first.calls[1]))] == sum_of(first.calls[1])
        assert masked(export) == [second.calls[0][1].token_ids]  # what others sampled is not ours to train


def sum_of(called: tuple[list[int], Any]) -> list[int]:
    return [*called[0], *called[1].token_ids]


def test_token_fields_that_say_something_else_are_not_used() -> None:
    tokenizer = merging()
    engine = Spelling(tokenizer, ["abab", "the end"])
    with model_world(engine) as world:
        question = {"role": "user", "content": "?"}
        message = world.chat([question], rollout=None, return_token_ids=True)
        edited = {**message, "content": "another"}
        world.chat([question, edited, question], rollout=None)
        assert "another" in tokenizer.decode(engine.calls[-1][0])
        assert "abab" not in tokenizer.decode(engine.calls[-1][0])
        for bad in ("x", [1.5], [-1], [True], [2**31]):
            refused = world.refused(400, messages=[question, {**message, "generation_token_ids": bad}])
            assert "message 1: field 'generation_token_ids' must be a list of token ids" in refused


def test_a_rollout_s_own_ledger_beats_what_its_client_brings() -> None:
    engine = Spelling(merging(), ["abab the ab the", "the end"])
    with model_world(engine) as world:
        question = {"role": "user", "content": "?"}
        message = world.chat([question], return_token_ids=True)
        canonical = engine.tokenizer.encode("abab the ab the<|im_end|>")
        assert canonical != message["generation_token_ids"]
        world.chat([question, {**message, "generation_token_ids": canonical}, question])
        (segment,) = world.close().segments
    assert segment.sampled == sum(len(g.token_ids) for _, g in engine.calls)
