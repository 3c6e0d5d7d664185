"""The model server over real HTTP: what it refuses, how many ledgers it holds, when they end; reasoning and its budget."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from live_server import Recording, eventually, masked, model_world

from gym_servers.models.scripted import END_ID, CodePoints, ScriptedEngine, scripted_logprob
from gym_servers.protocol import Item

TOKENS = CodePoints()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}
CALL = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"


def user(text: str) -> Item:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stop", ["x"], "stop strings cut tokens"),
        ("top_p", 0.9, "must be off for the policy"),
        ("top_k", 5, "must be off for the policy"),
        ("temperature", 0, "above 0 for the policy"),
        ("temperature", "hot", "must be a number"),
        ("max_tokens", -1, "must be a number of at least 0"),
        ("seed", "x", "must be a number"),
        ("min_p", 0.1, "is not served"),
        ("repetition_penalty", 1.1, "is not served"),
        ("presence_penalty", 0.5, "is not served"),
        ("frequency_penalty", 0.5, "is not served"),
        ("logit_bias", {"3": 1}, "is not served"),
        ("response_format", {"type": "json_object"}, "is not served"),
        ("n", 2, "one answer per request"),
        ("stream", True, "streaming is not served"),
        ("chat_template_kwargs", {"enable_thinking": True}, "takes 'reasoning' and 'reasoning_budget'"),
        ("chat_template_kwargs", {"reasoning": "yes"}, "must be true, false or null"),
        ("chat_template_kwargs", {"reasoning_budget": 0}, "must be at least 1 token"),
        ("messages", [{"role": "robot", "content": "x"}], "role 'robot'"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "reads text only"),
    ],
)
def test_what_would_change_the_policy_s_distribution_is_refused(field: str, value: Any, said: str) -> None:
    engine = Recording(["x"])
    with model_world(engine) as world:
        assert said in world.refused(400, **{field: value})
        assert engine.calls == []
        assert world.chat([user("?")])["content"] == "x"  # and what is refused changed nothing


def test_what_is_off_may_be_said_and_judges_may_sample_as_they_like() -> None:
    engine = Recording(["abc"])
    with model_world(engine) as world:
        off = {"top_p": 1, "top_k": -1, "stop": None, "presence_penalty": 0, "response_format": {"type": "text"}}
        assert world.chat([user("?")], **off)["content"] == "abc"
        world.chat([user("?")], rollout=None, temperature=0, top_p=0.5, top_k=3, stop="b", max_tokens=2)
        judge = engine.samplings[1]
        assert (judge.temperature, judge.top_p, judge.top_k, judge.stop, judge.max_tokens) == (0, 0.5, 3, ("b",), 2)
        assert world.state()["ledgers"] == 1


def test_ledgers_are_bounded_end_by_close_and_by_time() -> None:
    with model_world(ScriptedEngine(["x"]), max_ledgers=2) as world:
        world.chat([user("?")], "a")
        world.chat([user("?")], "b")
        assert "2 rollouts are open: close them, or raise max_ledgers" in world.refused(503, "c")
        assert world.close("a").usage["requests"] == 1
        world.chat([user("?")], "c")
        assert world.state()["ledgers"] == 2
        assert world.close("never used").usage["requests"] == 0
    with model_world(ScriptedEngine(["x"]), max_ledgers=1, ledger_ttl=0.2) as world:
        world.chat([user("?")], "left behind")
        eventually(lambda: world.state()["ledgers"] == 0)
        world.chat([user("?")], "another")


def test_a_close_whose_answer_was_lost_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gym_servers.models.calls.MAX_CLOSED_BYTES", 1500)
    with model_world(ScriptedEngine(["an answer"])) as world:
        for name in "abc":
            world.chat([user("?")], name)
        first = world.close("a")
        assert world.close("a") == first
        assert first.usage["requests"] == 1
        world.close("b")
        world.close("c")
        assert world.close("c").usage["requests"] == 1
        assert world.close("a").usage["requests"] == 0  # what is remembered is bounded


def test_a_late_call_to_a_closed_rollout_opens_no_ledger() -> None:
    """Nobody would fetch it: what it samples would be in no rollout and no count. Also where the rollout never called before."""
    with model_world(ScriptedEngine(["x"])) as world:
        world.chat([user("?")], "a")
        world.close("a")
        world.close("never used")
        assert "rollout 'a' is closed" in world.refused(503, "a")
        assert "is closed" in world.refused(503, "never used")
        assert world.state()["ledgers"] == 0
        assert world.close("a").usage["requests"] == 1


def test_a_forged_rollout_url_is_refused() -> None:
    with model_world(ScriptedEngine(["x"])) as world:
        signed = world.base("a").split("/")[-2]
        other = world.base("b").split("/")[-2]
        forged = f"{other.split('.')[0]}.{signed.split('.')[1]}"
        reply = world.http.post(f"/r/{forged}/v1/chat/completions", json={"messages": [user("?")]})
        assert reply.status_code == 400
        assert "not signed by this deployment" in reply.text
        assert world.state()["ledgers"] == 0


def test_close_ends_a_call_that_still_runs_and_counts_its_tokens() -> None:
    engine = Recording(["x" * 4000], seconds=8.0)
    with model_world(engine) as world:
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(world.refused(503)))
        thread.start()
        eventually(lambda: world.state()["open_calls"] == 1)
        export = world.close()
        thread.join()
    assert "ended with its rollout" in said[0]
    (_, generation) = engine.calls[0]
    assert generation.finish_reason == "abort"
    assert len(generation.token_ids) < 4000
    assert (export.usage["sampled_tokens"], export.dropped, export.segments) == (
        len(generation.token_ids),
        len(generation.token_ids),
        [],
    )


def test_a_full_context_is_an_incomplete_answer_and_truncation_is_the_engine_s_word() -> None:
    with model_world(ScriptedEngine(["xyz"], max_context=120)) as world:
        answer = world.post("/v1/responses", "r", input="q" * 120)
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "context"})
        assert world.close().truncation_reason == "context"
        # 4 tokens with the end: cut at 3, whole at exactly 4
        for most, status, finish in ((3, "incomplete", "length"), (4, "completed", "stop")):
            assert world.post("/v1/responses", f"r{most}", input="q", max_output_tokens=most)["status"] == status
            export = world.close(f"r{most}")
            assert (export.finish_reasons, export.truncated) == ([finish], finish == "length")


def test_reasoning_on_and_off_by_template_argument() -> None:
    engine = Recording(lambda asked: "why</think>because" if asked.prompt.endswith("<think>") else "because")
    with model_world(engine) as world:
        on = world.post("/v1/responses", "on", input="?", chat_template_kwargs={"reasoning": True})
        off = world.post("/v1/responses", "off", input="?", chat_template_kwargs={"reasoning": False})
        plain = world.post("/v1/responses", "plain", input="?")
    kinds = [[item["type"] for item in answer["output"]] for answer in (on, off, plain)]
    assert kinds == [["reasoning", "message"], ["message"], ["message"]]
    assert on["output"][0]["summary"] == [{"type": "summary_text", "text": "why"}]
    assert [answer["output"][-1]["content"][0]["text"] for answer in (on, off, plain)] == ["because"] * 3
    ends = [TOKENS.decode(prompt).rpartition("assistant\n")[2] for prompt, _ in engine.calls]
    assert ends == ["<think>", "<think></think>", ""]


def test_without_a_reasoning_model_tags_are_text() -> None:
    with model_world(ScriptedEngine(["<think>a</think>b"])) as world:
        assert world.chat([user("?")])["content"] == "<think>a</think>b"
        answer = world.post("/v1/responses", "other", input="?")
        assert answer["output"][0]["content"][0]["text"] == "<think>a</think>b"


def test_at_the_budget_the_server_closes_the_reasoning_and_nothing_of_that_is_trained() -> None:
    """Sampled: 5 tokens of thought, then the answer; the closing tag is the server's, mask 0 and log-probability 0."""
    engine = Recording(
        lambda asked: "yes" if "</think>" in asked.prompt.rpartition("assistant\n")[2] else "thoughts..."
    )
    with model_world(engine) as world:
        switched = {"reasoning": True, "reasoning_budget": 5}
        message = world.chat(
            [user("?")], chat_template_kwargs=switched, max_tokens=100, seed=3, return_token_ids=True, temperature=0.7
        )
        export = world.close()
    assert (message["reasoning_content"], message["content"]) == ("thoug", "yes")
    (first_prompt, first), (second_prompt, second) = engine.calls
    assert [s.max_tokens for s in engine.samplings] == [5, 100 - 5 - len("</think>")]
    assert {s.temperature for s in engine.samplings} == {0.7}
    assert second_prompt == first_prompt + TOKENS.encode("thoug</think>")
    (segment,) = export.segments
    answer = [*TOKENS.encode("yes"), END_ID]
    assert segment.token_ids == second_prompt + answer
    assert segment.mask == [0] * len(first_prompt) + [1] * 5 + [0] * len("</think>") + [1] * 4
    assert segment.lp_gen == ([0.0] * len(first_prompt) + first.logprobs + [0.0] * len("</think>") + second.logprobs)
    assert first.logprobs[0] == scripted_logprob(3, 0, ord("t"))
    assert export.usage == {
        "prompt_tokens": len(first_prompt) + len(second_prompt),
        "sampled_tokens": 9,
        "requests": 2,
    }
    assert message["generation_token_ids"] == [*TOKENS.encode("thoug</think>yes"), END_ID]
    assert message["generation_loss_mask"] == [1] * 5 + [0] * 8 + [1] * 4
    assert (export.truncated, export.finish_reasons) == (False, ["stop"])


def test_a_budget_that_is_not_reached_or_not_overrun_writes_nothing() -> None:
    budget = {"chat_template_kwargs": {"reasoning": True, "reasoning_budget": 12}}

    def script(asked: Any) -> str:
        said = asked.prompt.rpartition("assistant\n<think>")[2]
        return "ok</think>a long answer"[len(said) :]

    engine = Recording(script)
    with model_world(engine) as world:
        message = world.chat([user("?")], **budget)  # closed within the budget, which ends in the answer
        export = world.close()
        assert (message["reasoning_content"], message["content"]) == ("ok", "a long answer")
        assert masked(export) == [[*TOKENS.encode("ok</think>a long answer"), END_ID]]
        engine.script = ["ok</think>"]
        world.chat([user("?")], "b", **budget)  # ended by itself
        assert world.close("b").usage["requests"] == 1
        engine.script = ["t" * 50]
        world.chat([user("?")], "c", max_tokens=12, **budget)  # no room for an answer behind the budget
        export = world.close("c")
        assert (export.truncation_reason, masked(export)) == ("max_tokens", [TOKENS.encode("t" * 12)])
        world.chat([user("?")], "d", chat_template_kwargs={"reasoning": False, "reasoning_budget": 3})
        assert masked(world.close("d")) == [[*TOKENS.encode("t" * 50), END_ID]]  # no reasoning, no budget


def test_a_budget_of_the_server_holds_where_the_request_says_nothing() -> None:
    engine = Recording(lambda asked: "fin" if "</think>" in asked.prompt else "t" * 50)
    with model_world(engine, reasoning=True, reasoning_budget=4) as world:
        assert world.chat([user("?")])["reasoning_content"] == "tttt"


def test_tool_calls_come_apart_alike_in_both_forms() -> None:
    with model_world(ScriptedEngine([f"I call.\n{CALL}\n{CALL}"])) as world:
        answer = world.post("/v1/chat/completions", "c", messages=[user("?")], tools=[TOOL])
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "I call."
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]]
        assert calls == [("f", '{"a":1}')] * 2
        tool = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
        items = world.post("/v1/responses", "r", input="?", tools=[tool])["output"]
        assert [item["type"] for item in items] == ["message", "function_call", "function_call"]
        assert len({item["call_id"] for item in items[1:]}) == 2
