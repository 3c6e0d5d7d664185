"""A run with a tiny model and a scripted world: answers are sampled from the policy's own copy, graded by their tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import rl_trainer.actors
from curriculum.options import CurriculumOptions
from curriculum.profile import Profile, read_profile
from gym_servers.hosts.local import LocalHost
from gym_servers.protocol import Failure, Rollout, Segment
from gym_servers.rollouts import Collector, RolloutRequest
from rl_trainer import services
from rl_trainer.actors import local_policy
from rl_trainer.config import RunConfig
from rl_trainer.generation import RolloutPlan
from rl_trainer.loop import Run
from rl_trainer.metrics import MetricsLog
from rl_trainer.options import PolicyOptions
from rl_trainer.sampler import Sampler
from rl_trainer.services import HttpGeneration
from rl_trainer.store import RunStore
from rl_trainer.tasks import LoadedTask

PROMPT, ANSWER, TASKS = 5, 8, 3


class Quiet:
    """An observer that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.seen = 0

    def phase(self, step: int, name: str, total: int = 0) -> None: ...

    def rollout(self, rollout: Rollout) -> None:
        self.seen += 1

    def step(self, record: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


class TorchEngine:
    """Samples from its own copy of the weights, a function of (weights, prompt, seed). Reward: share of even tokens."""

    def __init__(self, model: Path) -> None:
        options = PolicyOptions(model=str(model), dtype="float32", device="cpu", threads=1)
        self.policy = local_policy(options)
        self.version = 0
        self.change: Callable[[Rollout], None] = lambda rollout: None
        self.received: Callable[[str], str] = lambda digest: digest
        self.skip_loading = False
        self.sampled: list[str] = []
        self.stop_after: int | None = None

    def update_weights(self, path: Path, digest: str, version: int, rehearsal: bool = False, back: bool = False) -> str:
        from safetensors.torch import load_file

        from rl_trainer.weights import weights_digest

        tensors = load_file(path)
        if not self.skip_loading:
            self.policy.worker.load(tensors)  # type: ignore[attr-defined]
        self.version = version
        return self.received(weights_digest(tensors))

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.policy.score(token_ids)

    def collect(self, plans: Sequence[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
        for plan in plans:
            if self.stop_after is not None and len(self.sampled) >= self.stop_after:
                raise KeyboardInterrupt
            self.sampled.append(plan.rollout_id.split("/", 1)[1])
            rollout = self.sample(plan)
            self.change(rollout)
            on_done(rollout)

    def sample(self, plan: RolloutPlan) -> Rollout:
        import torch

        draw = np.random.default_rng(plan.seed)
        ids = list(plan.task.row["ids"])
        lp_gen = [0.0] * len(ids)
        model = self.policy.worker.model  # type: ignore[attr-defined]
        for _ in range(ANSWER):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([ids]),
                    position_ids=torch.arange(len(ids))[None],
                    trunks=((len(ids), ()),),
                    use_cache=False,
                ).logits[0, -1]
            lp = logits.double().log_softmax(-1).numpy()
            token = int(draw.choice(len(lp), p=np.exp(lp) / np.exp(lp).sum()))
            ids.append(token)
            lp_gen.append(float(lp[token]))
        answer = ids[PROMPT:]
        return Rollout(
            task_id=plan.task.task_id,
            environment=plan.task.environment,
            group=plan.group,
            attempt=plan.attempt,
            seed=plan.seed,
            output=[{"type": "message", "role": "assistant", "content": str(answer)}],
            segments=[
                Segment(token_ids=ids, mask=[0] * PROMPT + [1] * ANSWER, lp_gen=lp_gen, weight_version=self.version)
            ],
            reward=sum(token % 2 == 0 for token in answer) / ANSWER,
            usage={"sampled_tokens": ANSWER, "prompt_tokens": PROMPT, "requests": 1},
        )


def tasks_of(environment: str, n: int) -> list[LoadedTask]:
    draw = np.random.default_rng(len(environment))
    return [
        LoadedTask(environment, f"t{k}", {"ids": [int(x) for x in draw.integers(5, 300, PROMPT)]}) for k in range(n)
    ]


def small_config(model: Path, folder: Path, **values: Any) -> RunConfig:
    tree = {
        "name": "tiny",
        "runs_folder": str(folder),
        "model": str(model),
        "steps": 4,
        "tasks_per_step": 2,
        "group_size": 3,
        "mixture": {"a": 1, "bb": 1},
        "policy": {"dtype": "float32", "device": "cpu", "threads": 1},
        "engine": {"dtype": "float32"},
        "optimizer": {"lr": 1e-2, "warmup_steps": 0},
        "checkpoint": {"every": 2, "keep_last": 2},
        "val": {"tasks": 2, "samples": 2},
        "ray": {"enabled": False},
    }
    return RunConfig.model_validate({**tree, **values})


def easy_profile() -> Profile:
    """t0, t1, t2 of both environments, solved in 1/4, 1/2 and 3/4 of 4 rollouts."""
    n = 2 * TASKS
    return Profile(
        task_id=np.array([f"t{k}" for k in range(TASKS)] * 2),
        domain=np.array(["a"] * TASKS + ["bb"] * TASKS),
        pass_rate=np.array([0.25, 0.5, 0.75] * 2),
        n=np.full(n, 4),
        stderr=np.full(n, 0.25),
        mean_tokens=np.full(n, 8.0),
        truncated=np.zeros(n),
        weights="start",
    )


def sampler_of(config: RunConfig, tasks: Mapping[str, Sequence[LoadedTask]], profile: Profile | None = None) -> Sampler:
    options = CurriculumOptions(
        ratios={name: config.mixture[name] for name in config.environments},
        batch_size=config.tasks_per_step,
        steps=config.steps,
        seed=config.seed,
        order=config.sampler,
    )
    return Sampler(tasks, options, profile)


def make_run(
    config: RunConfig,
    model: Path,
    store: RunStore | None = None,
    heldout: bool = False,
    engine: bool = True,
    profile: Profile | None = None,
) -> tuple[Run, TorchEngine]:
    world = TorchEngine(model)
    store = store or RunStore.create(config.runs_folder, config.name, config.to_yaml())
    tasks = {name: tasks_of(name, TASKS) for name in config.environments}
    sampler = sampler_of(config, tasks, profile)
    for step, path in sorted(store.profiles().items()):
        sampler.replan(step, read_profile(path))
    run = Run(
        config,
        store,
        sampler,
        local_policy(config.policy_options(model, None)),
        world if engine else None,
        MetricsLog(store, config.wandb),
        Quiet(),
        heldout=[task for name in config.environments for task in tasks_of(name, 2)] if heldout else [],
        weights_folder=store.folder,
    )
    return run, world


def broken(rollout: Rollout, kind: str = "timeout") -> None:
    rollout.failure = Failure(kind=kind, message="no answer")  # type: ignore[arg-type]
    rollout.reward = None


def write_config(folder: Path, model: Path, **values: Any) -> Path:
    """A short run on a real environment, as a file for `omnigym train`."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "runs_folder": str(folder / "runs"),
        "model": str(model),
        "steps": 3,
        "tasks_per_step": 2,
        "group_size": 4,
        "mixture": {"competition_math": 1},
        "tasks": {"competition_math": {"n": 20}},
        "sampling": {"max_tokens": 24},
        "algorithm": {"overlong_filtering": False},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "policy": {"dtype": "float32", "device": "cpu", "threads": 1},
        "engine": {"dtype": "float32", "threads": 1, "kv_gib": 1, "max_model_len": 1500, "start_seconds": 600},
        "checkpoint": {"every": 2},
        "val": {"tasks": 0},
        "ray": {"enabled": False},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**tree, **values}))
    return path


class Reply:
    url = "http://127.0.0.1:9"

    def wait_ready(self, seconds: float) -> str:
        return self.url

    def environment_url(self, name: str) -> str:
        return f"{self.url}/{name}"


def without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole `omnigym train` whose processes, engine and Ray are not there: what would reach them is read all the same."""
    versions = [0]

    async def one(self: Collector, client: object, request: RolloutRequest) -> Rollout:
        rollout = self._fresh(request)
        n = 6
        ids = tasks_of("x" * (1 + request.seed % 7), 1)[0].row["ids"]
        rollout.segments = [
            Segment(
                token_ids=ids + list(range(20, 20 + n)),
                mask=[0] * len(ids) + [1] * n,
                lp_gen=[0.0] * len(ids) + [-math.log(320)] * n,
                weight_version=versions[0],
            )
        ]
        rollout.truncated = request.attempt == 2
        rollout.reward, rollout.usage = float(request.attempt == 0), {"sampled_tokens": n}
        return rollout

    def admin(self: HttpGeneration, call: str, body: dict[str, Any] | None) -> dict[str, Any]:
        assert self.config.no_progress_seconds
        if call == "update_weights":
            assert body is not None
            versions[:] = [body["version"], body["digest"]]
        if call == "score":
            assert body is not None
            return {"logprobs": [[-6.0] * (len(ids) - 1) for ids in body["token_ids"]]}
        return {"weight_version": versions[0], "digest": versions[-1]}

    monkeypatch.setattr("rl_trainer.loop.REHEARSAL_SHARE", math.inf)  # the scores above follow no weights
    monkeypatch.setattr(Collector, "one", one)
    monkeypatch.setattr(HttpGeneration, "_admin", admin)

    def start(self: LocalHost, *_: Any, **__: Any) -> Any:
        self.servers.append(Reply())  # type: ignore[arg-type]
        return self.servers[-1]

    monkeypatch.setattr(LocalHost, "start", start)
    monkeypatch.setattr(services, "environment_server", lambda *_: Reply())
    monkeypatch.setattr(LocalHost, "check", lambda self: None)

    async def watch(self: LocalHost) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(LocalHost, "watch", watch)
    monkeypatch.setattr(LocalHost, "current", lambda self, url: url)
    monkeypatch.setattr(LocalHost, "__exit__", lambda self, *exc: None)
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(rl_trainer.actors, "RayPolicy", lambda options, *_: rl_trainer.actors.local_policy(options))
