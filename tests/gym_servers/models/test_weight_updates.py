"""Weights change between calls, never inside one, over real HTTP (pitfalls 14 and 15); what fails is not served from."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_server import Recording, World, eventually, masked, model_world

from gym_servers.models.engine import Sampling, WeightsRefused
from gym_servers.models.scripted import ScriptedEngine
from gym_servers.models.wire import LedgerExport
from gym_servers.protocol import OmnigymError

ASK = {"messages": [{"role": "user", "content": "?"}]}


def versions_of(export: LedgerExport) -> set[int]:
    return {segment.weight_version for segment in export.segments}


def mark(version: int) -> str:
    return chr(0x4E00 + version)


class Telling(Recording):
    """Every token that it samples says which version was served when its call began."""

    def __init__(self, **values: Any) -> None:
        super().__init__(lambda asked: mark(self.state.weight_version) * 20, **values)


@pytest.mark.parametrize(("seconds", "thinking"), [(0.0, False), (0.004, False), (0.03, False), (0.004, True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_call_mixes_versions_under_concurrent_updates(seed: int, seconds: float, thinking: bool) -> None:
    """6 rollouts call without pause while 12 updates come at random moments. What is served was sampled under the version that
    its segment says; a call that an update meets is a failure, and the tokens it had are dropped, not trained.
    """
    engine = Telling(seconds=seconds, update_seconds=0.01)
    draw = random.Random(seed)
    switched: dict[str, Any] = {}
    if thinking:  # two engine calls in one turn
        switched = {"chat_template_kwargs": {"reasoning": True, "reasoning_budget": 7}}
    stop = threading.Event()

    def rollout(world: World, name: str) -> tuple[int, LedgerExport]:
        answers = 0
        path = f"{world.base(name).removeprefix(world.url)}/chat/completions"
        while not stop.is_set():
            reply = world.http.post(path, json={**ASK, **switched})
            if reply.status_code == 200:
                answers += 1
            else:
                found = reply.json()
                assert (reply.status_code, found["retryable"]) == (503, True)
                assert found["error"]["type"] in ("version_straddled", "model_error")
        return answers, world.close(name)

    with model_world(engine) as world, ThreadPoolExecutor(6) as pool:
        rollouts = [pool.submit(rollout, world, f"r{k}") for k in range(6)]
        for version in range(1, 13):
            threading.Event().wait(draw.random() * 0.05)
            world.update(version, f"d{version}")
        stop.set()
        ended = [future.result() for future in rollouts]
        state = world.state()
    assert (state["poisoned"], state["weight_version"], state["open_calls"]) == ("", 12, 0)
    for answers, export in ended:
        assert len(export.segments) == answers
        for segment, ids in zip(export.segments, masked(export), strict=True):
            said = set(engine.tokenizer.decode(ids).removesuffix(engine.tokenizer.end_token))
            assert said == {mark(segment.weight_version)}
    assert len({segment.weight_version for _, export in ended for segment in export.segments}) > 1
    sampled = sum(len(generation.token_ids) for _, generation in engine.calls)
    assert sampled == sum(export.usage["sampled_tokens"] for _, export in ended)
    assert sampled == sum(s.sampled for _, export in ended for s in export.segments) + sum(e.dropped for _, e in ended)


def test_a_call_that_an_update_meets_is_a_failure_and_its_tokens_are_dropped() -> None:
    engine = Recording(["x" * 100_000], seconds=20.0)
    with model_world(engine) as world, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(world.post, "/v1/chat/completions", "r", 503, **ASK)
        eventually(lambda: world.state()["open_calls"] == 1)
        assert world.update(1)["weight_version"] == 1
        assert asked.result()["error"]["type"] == "version_straddled"
        export = world.close()
    (_, generation) = engine.calls[0]
    assert generation.weight_versions == (0,)
    assert export.dropped == export.usage["sampled_tokens"] == len(generation.token_ids) < 100_000
    assert export.segments == []


def test_an_engine_that_changes_weights_inside_a_call_is_found_out() -> None:
    """The engine's word counts: a generation of two versions is a failure, whatever the server knows."""

    class Mixing(ScriptedEngine):
        async def generate(self, *args: Any) -> Any:
            generation = await super().generate(*args)
            return replace(generation, weight_versions=(0, 1))

    with model_world(Mixing(["mixed"])) as world:
        assert world.post("/v1/chat/completions", "r", 503, **ASK)["error"]["type"] == "version_straddled"
        export = world.close()
    assert (export.dropped, export.segments) == (6, [])


def test_the_two_calls_of_a_budget_under_two_versions_are_one_failure() -> None:
    class Between(Recording):
        async def generate(self, *args: Any) -> Any:
            generation = await super().generate(*args)
            if len(self.calls) == 1:
                self.state.weight_version = 1
            return generation

    engine = Between(["thoughts"])
    with model_world(engine) as world:
        switched = {"reasoning": True, "reasoning_budget": 3}
        body = {**ASK, "chat_template_kwargs": switched}
        assert world.post("/v1/chat/completions", "r", 503, **body)["error"]["type"] == "version_straddled"
        assert [g.weight_versions for _, g in engine.calls] == [(0,), (1,)]
        export = world.close()
    assert export.segments == []
    assert export.dropped == export.usage["sampled_tokens"] == sum(len(g.token_ids) for _, g in engine.calls)


def test_an_earlier_version_comes_back_only_when_it_is_meant_to() -> None:
    """And which weights are served can be asked for."""
    with model_world(ScriptedEngine(["one"])) as world:
        assert world.http.get("/admin/weights").json() == {"digest": ""}
        world.update(2, "d2")
        refused = world.update(1, "d1", status=400)
        assert "version 1 after 2" in refused["error"]["message"] and world.state()["weight_version"] == 2
        assert world.update(1, "d1", back=True)["weight_version"] == 1
        assert world.http.get("/admin/weights").json() == {"digest": "d1"}
        world.chat(ASK["messages"])
        assert world.update(2, "d2")["digest"] == "d2"
        world.update(2, "d3", status=400, back=True)  # a version stands for one set of weights all the same
        export = world.close()
    assert [segment.weight_version for segment in export.segments] == [1]


def test_before_any_update_the_weights_are_the_checkpoint_s(tmp_path: Path) -> None:
    """One tensor `w` of the bytes 0 to 3: sha256 of `w:<sha256 of the bytes>` and a newline, by hand from the file's layout."""
    header = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(4)))
    engine = ScriptedEngine(["one"])
    engine.state.model = str(tmp_path)
    line = f"w:{hashlib.sha256(bytes(range(4))).hexdigest()}\n"
    with model_world(engine) as world:
        assert world.http.get("/admin/weights").json() == {"digest": hashlib.sha256(line.encode()).hexdigest()}


def test_a_rollout_over_an_update_has_a_segment_per_version() -> None:
    with model_world(ScriptedEngine(["one", "two"])) as world:
        messages = [*ASK["messages"], world.chat(ASK["messages"])]
        world.update(1)
        world.chat([*messages, {"role": "user", "content": "and?"}])
        export = world.close()
    assert [(s.weight_version, s.break_reason) for s in export.segments] == [(0, ""), (1, "weight_version")]
    assert [s.sampled for s in export.segments] == [4, 4]


@pytest.mark.parametrize("broken", [OmnigymError("half of it is loaded"), RuntimeError("half of it is loaded")])
def test_a_poisoned_engine_serves_nothing(broken: Exception) -> None:
    class Breaking(ScriptedEngine):
        async def update_weights(self, path: str, digest: str, version: int) -> None:
            raise broken

    with model_world(Breaking(["x"])) as world:
        world.chat(ASK["messages"])
        failed = world.update(1, status=503)
        assert (failed["retryable"], "half of it is loaded" in failed["error"]["message"]) == (False, True)
        for path, body in (
            ("/v1/chat/completions", ASK),
            ("/v1/responses", {"input": "?"}),
            ("/admin/score", {"token_ids": [[1, 2]]}),
        ):
            refused = world.post(path, status=503, **body)
            assert (refused["retryable"], "must be restarted" in refused["error"]["message"]) == (False, True)
        assert "must be restarted" in world.refused(503)
        assert "must be restarted" in world.update(2, status=503)["error"]["message"]
        assert world.state()["poisoned"]
        assert world.close().usage["requests"] == 1  # what was sampled before is not lost


def test_a_refused_update_leaves_the_old_weights_serving() -> None:
    class Refusing(ScriptedEngine):
        async def update_weights(self, path: str, digest: str, version: int) -> None:
            raise WeightsRefused("weights refused: one tensor is missing")

    with model_world(Refusing(["x"])) as world:
        refused = world.update(1, status=400)
        assert "one tensor is missing" in refused["error"]["message"]
        world.chat(ASK["messages"])
        assert versions_of(world.close()) == {0}


def test_a_version_stands_for_one_set_of_weights() -> None:
    with model_world(ScriptedEngine(["x"])) as world:
        world.update(0, "a")  # a run's first: the checkpoint that the engine started from
        world.update(2, "b")
        world.update(2, "b")  # told twice
        assert "version 2 after 2" in world.update(2, "c", 400)["error"]["message"]
        assert "version 1 after 2" in world.update(1, "a", 400)["error"]["message"]
        assert (world.state()["weight_version"], world.state()["digest"], world.state()["updates"]) == (2, "b", 3)


def test_the_scripted_engine_refuses_an_update_inside_a_call() -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(["x"], seconds=5.0)
        call = asyncio.create_task(engine.generate([1], Sampling(max_tokens=5), 0, "a"))
        await asyncio.sleep(0.01)
        with pytest.raises(OmnigymError, match="1 calls were in flight"):
            await engine.update_weights("-", "d", 1)
        await engine.abort(["a"])
        assert (await call).finish_reason == "abort"
        await engine.update_weights("-", "d", 1)

    asyncio.run(scenario())


def test_nothing_is_sampled_with_the_weights_of_a_rehearsal() -> None:
    """They are scored; their version is then that of the weights that follow, and of no others."""
    with model_world(Telling()) as world:
        world.update(3, "flipped", rehearsal=True)
        assert "rehearsal" in world.refused(503)
        assert world.post("/admin/score", token_ids=[[1, 2, 3]])["logprobs"]
        assert world.state()["digest"] == "flipped"
        world.update(3, "real")
        assert set(world.chat(ASK["messages"])["content"]) == {mark(3)}
        assert "stands for one set" in str(world.update(3, "flipped", 400, rehearsal=True))
        assert world.chat(ASK["messages"])["content"]
        assert world.state()["digest"] == "real"
