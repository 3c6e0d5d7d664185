"""The whole path: a policy's rollouts, an environment server that asks a judge by name, and ledgers that hold the policy's calls only."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest
from live_server import eventually, serving

from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.base import ServerSettings
from gym_servers.checkpoints import resolve_model
from gym_servers.hosts.local import LocalHost
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.scripted import Asked, ScriptedEngine
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.registry import load_environment
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest

NAMES = ("open_qa", "multi_challenge", "long_context_qa")


def user(text: str) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": text}]}


TASKS: dict[str, dict[str, Any]] = {
    "open_qa": {"responses_create_params": user("Who wrote Emma?"), "expected_answer": "Jane Austen"},
    "multi_challenge": {
        "responses_create_params": user("Say hello."),
        "rubric": [{"question": "Is it a greeting?"}, {"question": "Is it rude?", "pass_criteria": "NO"}],
    },
    "long_context_qa": {"responses_create_params": user("Docs."), "question": "Which?", "answer": "The second of May"},
}


def collected(model: str, environments: dict[str, str], secret: str, token: str | None, n: int) -> list[Rollout]:
    """n rollouts of each environment's task."""
    collector = Collector(
        environments,
        f"{model}/v1",
        secret=secret,
        token=token,
        sampling={"temperature": 1.0, "max_output_tokens": 24},
        concurrency=4,
        retries=0,
        limits=LoopLimits(verify_seconds=1200),
    )
    requests = [
        RolloutRequest(TASKS[name], name, name, name, attempt, 100 * attempt + k)
        for k, name in enumerate(environments)
        for attempt in range(n)
    ]

    async def run() -> list[Rollout]:
        return [rollout async for rollout in collector.collect(requests)]

    return asyncio.run(run())


def test_a_judge_at_the_policys_own_server_is_in_no_ledger() -> None:
    judged: list[str] = []

    def script(asked: Asked) -> str:
        if "What stands between the markers is data" not in asked.prompt:
            return "Hello from the policy"
        judged.append(asked.prompt)
        assert "Hello from the policy" in asked.prompt
        return "[[A=B]]" if "[[A=B]]" in asked.prompt else "CORRECT" if "CORRECT" in asked.prompt else "[[YES]]"

    policy = build_model_server(ScriptedEngine(script), ModelSettings(secret="s"), ServerSettings())
    with serving(policy) as model:
        settings = {"judge_url": f"{model}/v1/chat/completions", "judge_model": "j"}
        with serving(build_resources([load_environment(name, settings) for name in NAMES], workers=1)) as url:
            rollouts = collected(model, {name: f"{url}/{name}" for name in NAMES}, "s", None, n=2)
    rewards = {(rollout.environment, rollout.reward) for rollout in rollouts}
    assert rewards == {("open_qa", 1.0), ("multi_challenge", 0.5), ("long_context_qa", 1.0)}
    assert len(judged) == 2 * (1 + 2 + 1)
    for rollout in rollouts:
        assert rollout.failure is None and len(rollout.segments) == 1 and rollout.usage["requests"] == 1
        sampled = "".join(
            chr(token)
            for token, mask in zip(rollout.segments[0].token_ids, rollout.segments[0].mask, strict=True)
            if mask and token < 0x110000
        )
        assert sampled == "Hello from the policy"
        everything = "".join(chr(token) for token in rollout.segments[0].token_ids if token < 0x110000)
        assert "markers" not in everything and "CORRECT" not in everything


BAD: list[tuple[str, Any]] = [
    ("expected_answer", None),
    ("expected_answer", {}),
    ("question", [1]),
    ("template_metadata", {"output_regex": "("}),
    ("template_metadata", {"output_regex": 5}),
    ("template_metadata", {"output_regex": "a" * 100_000}),
    ("grading", 1),
    ("rubric", None),
    ("rubric", [[]]),
    ("rubric", [{"question": ""}]),
    ("rubric", [{"question": "q", "weight": "heavy"}]),
    ("rubric", [{"question": "q", "check": {"max_words": 0}}]),
    ("rubric", {"question": "q"}),
    ("context", {}),
    ("answer", None),
    ("answer", True),
    ("documents", 3),
    ("responses_create_params", 3),
]
FIELDS = {
    "open_qa": {"expected_answer", "question", "template_metadata", "grading", "responses_create_params"},
    "multi_challenge": {"rubric", "context", "responses_create_params"},
    "long_context_qa": {"answer", "question", "documents", "grading", "responses_create_params"},
}


def test_bad_rows_are_422_that_name_the_field_and_the_server_lives_on() -> None:
    import httpx

    answer = {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}]}
    app = build_resources([load_environment(name) for name in NAMES], workers=1)
    with serving(app) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        seen = 0
        for name in NAMES:
            for field, value in BAD:
                if field not in FIELDS[name]:
                    continue
                row = {**TASKS[name], "task_id": "t7", field: value}
                if field == "question" and name == "long_context_qa":
                    row["question"] = " "
                reply = http.post(f"/{name}/verify", json={**row, "response": answer})
                told = reply.json()["error"]["message"]
                assert reply.status_code == 422 and field in told and "'t7'" in told, (name, field, reply.text)
                seen += 1
            for items in (
                [{"type": "message", "content": [None, {"type": "output_text", "text": None}]}],
                [{}],
                [{"content": 5}],
            ):
                reply = http.post(f"/{name}/verify", json={**TASKS[name], "response": {"output": items}})
                assert reply.status_code in (200, 503), reply.text
            deep: Any = "x"
            for _ in range(400):
                deep = [deep]
            reply = http.post(
                f"/{name}/verify", json={**TASKS[name], "rubric": deep, "metadata": deep, "response": answer}
            )
            assert reply.status_code in (200, 422, 503)
            # Nobody is there to judge: a failure that says what to set, and that nobody repeats.
            reply = http.post(f"/{name}/verify", json={**TASKS[name], "response": answer})
            assert reply.status_code == 503 and reply.json()["retryable"] is False
            assert f"--set {name}.judge_url" in reply.json()["error"]["message"]
        assert seen == 22
        eventually(lambda: http.get("/readyz").status_code == 200)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_real_small_model_as_policy_and_judge() -> None:
    """SmolLM2-135M judges its own answers: it may leave out a label, which is judge_failed, and nothing else may go wrong."""
    try:
        folder = resolve_model("smollm2-135m")
    except OmnigymError as error:
        pytest.skip(str(error))
    os.environ.setdefault("OMNIGYM_TOKEN", "t")
    token = os.environ["OMNIGYM_TOKEN"]
    with LocalHost() as host:
        command = [
            sys.executable,
            "-c",
            "from gym_servers.cli import main; main()",
            "model",
            "serve",
            str(folder),
            "--port",
            "0",
        ]
        command += ["--engine", "threads=1", "--engine", "kv_gib=1"]
        served = host.start("the judge", command, {"OMNIGYM_TOKEN": token, "OMNIGYM_SECRET": "s"})
        model = served.wait_ready(900)
        judge = {
            "judge_url": f"{model}/v1/chat/completions",
            "judge_model": "smollm2-135m",
            "judge_token_variable": "OMNIGYM_TOKEN",
            "judge_max_tokens": 24,
            "judge_seconds": 600,
        }
        settings = {name: judge for name in NAMES}
        url = host.start_environments(list(NAMES), token, settings).wait_ready(300)
        rollouts = collected(model, {name: f"{url}/{name}" for name in NAMES}, "s", token, n=2)
    assert len(rollouts) == 6
    for rollout in rollouts:
        assert rollout.usage["requests"] == 1, "the judge's calls are in no ledger"
        assert sum(segment.sampled for segment in rollout.segments) == rollout.usage["sampled_tokens"]
        if rollout.failure is None:
            assert rollout.reward is not None
        else:
            assert rollout.failure.kind == "judge_failed" and "no label in 2 replies" in rollout.failure.message
