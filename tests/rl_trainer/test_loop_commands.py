"""`omnigym train | export | report` as a user calls them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from loop_world import make_run, small_config, write_config
from typer.testing import CliRunner

from curriculum.profile import Profile, write_profile
from gym_servers.cli import build
from gym_servers.protocol import OmnigymError
from rl_trainer import commands
from rl_trainer.actors import local_policy
from rl_trainer.config import load_config
from rl_trainer.store import RunStore
from rl_trainer.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def call(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "no configuration file 'nothing.yaml'"),
        ([], "give a configuration file, or --resume RUN"),
        (["FILE", "stepz=3"], "unknown key 'stepz'; did you mean 'steps'"),
        (["FILE", "model=smollm2-136m"], "did you mean 'smollm2-135m'"),
        (["FILE", "mixture={competition_maths: 1}", "tasks={}"], "did you mean 'competition_math'"),
        (["FILE", "--rollouts-only", "--from-rollouts", "x"], "exclude each other"),
        (["FILE", "--from-rollouts", "x"], "'x' is no run folder"),
        (["--resume", "x"], "'x' is no run folder"),
        (["FILE", "policy.workers=2"], r"policy.workers \(2\) above 1 needs ray.enabled=true"),
        (["FILE", "engine.max_model_len=30"], "every prompt is longer than 6 tokens"),
        (["FILE", "optimizer.lr=fast"], "key 'optimizer.lr': Input should be a valid number.*found 'fast'"),
        (["FILE", "tasks.competition_math.file=nothing.jsonl"], "nothing.jsonl"),
        (["FILE", "sampler=gaussian", "curriculum.profile=none.parquet"], r"no profile '.*none\.parquet'"),
        (["FILE", "tasks.competition_math.file=CUT"], r"cut\.jsonl:2: not valid JSON.*is it cut off\?"),
        (
            ["FILE", "tasks.competition_math.file=OTHER"],
            r"other\.jsonl:1: environment 'competition_math'.*expected_answer",
        ),
    ],
)
def test_errors_name_the_fix(model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    row = '{"responses_create_params": {"input": "1+1?"}, "expected_answer": "2"}\n'
    (tmp_path / "cut.jsonl").write_text(row + row[:40])
    (tmp_path / "other.jsonl").write_text(row.replace("expected_answer", "answer"))
    names = {"FILE": str(write_config(tmp_path, model)), "CUT": "cut.jsonl", "OTHER": "other.jsonl"}
    for name in ("CUT", "OTHER"):
        arguments = [a.replace(name, str(tmp_path / names[name])) for a in arguments]
    with pytest.raises(OmnigymError, match=message):
        call("train", *[names.get(a, a) for a in arguments])
    assert not (tmp_path / "runs").exists()  # before anything starts


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["wandb=true"], "wandb: true needs the package"),
        (["policy.device=cuda"], "policy.device: cuda, and torch sees no CUDA device here"),
        (["policy.reference=/nowhere"], "/nowhere"),
        (["placement={environments: url, url: 'http://127.0.0.1:9'}"], "set OMNIGYM_ENVIRONMENTS_TOKEN"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_a_run_would_fail_on_later_is_said_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str, dry: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("OMNIGYM_ENVIRONMENTS_TOKEN", raising=False)
    with pytest.raises(OmnigymError, match=message):
        call("train", str(write_config(tmp_path, model)), *overrides, *dry)
    assert not (tmp_path / "runs").exists()


def test_another_model_s_profile_is_refused(model: Path, tmp_path: Path) -> None:
    profile = Profile(
        task_id=np.array(["t"]),
        domain=np.array(["competition_math"]),
        pass_rate=np.array([0.5]),
        n=np.array([4]),
        stderr=np.array([0.25]),
        mean_tokens=np.array([8.0]),
        truncated=np.array([0.0]),
        weights="0123456789abcdefgh",
    )
    write_profile(tmp_path / "p.parquet", profile)
    with pytest.raises(OmnigymError, match="is of weights 0123456789abcdef, model .*: profile this model with"):
        call("train", str(write_config(tmp_path, model)), f"curriculum.profile={tmp_path / 'p.parquet'}")
    assert not (tmp_path / "runs").exists()


def test_a_refused_override_does_not_stay(model: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, model))
    store = RunStore.create(tmp_path / "runs", "tiny", config.to_yaml())
    prepared = commands.prepare(config, model)
    policy = local_policy(prepared.options)
    policy.save(store.checkpoints, 2, {"sampler": prepared.sampler.state_dict(), "config": {}, "extra": {}})
    before = (store.folder / "config.yaml").read_bytes()
    for override, message in (("seed=5", "the seed was 0 and is 5"), ("steps=1", "already holds 2")):
        with pytest.raises(OmnigymError, match=message):
            call("train", "--resume", str(store.folder), override)
    assert (store.folder / "config.yaml").read_bytes() == before


def test_dry_run_prints_the_plan_and_starts_nothing(model: Path, tmp_path: Path) -> None:
    out = call("train", str(write_config(tmp_path, model)), "steps=5", "--dry-run")
    assert "environment competition_math: 20 training tasks" in out
    assert "5 steps of 2 tasks x 4 rollouts = 8 a step, 40 in all" in out
    assert "step 0: competition_math/" in out
    assert not (tmp_path / "runs").exists()


def test_from_rollouts_then_export_and_report(model: Path, tmp_path: Path) -> None:
    """Training from another run's rollouts needs no server; what it exports is a model that transformers loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = small_config(model, tmp_path / "source", steps=2)
    source, _ = make_run(config, model)
    source.rollouts_only()
    call("train", str(write_config(tmp_path, model)), "--from-rollouts", str(source.store.folder))
    (folder,) = (tmp_path / "runs").iterdir()
    assert "<svg" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert call("report", str(folder)).strip() == str(folder / "report.html")
    out = Path(call("export", str(folder), "--dtype", "float32").strip())
    trained = AutoModelForCausalLM.from_pretrained(out).state_dict()
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert any(not trained[name].equal(start[name]) for name in start)
    assert AutoTokenizer.from_pretrained(out).chat_template
    with pytest.raises(OmnigymError, match="no checkpoint of 9 steps; there are: 2"):
        call("export", str(folder), "--step", "9")
    with pytest.raises(OmnigymError, match="no validation on record"):
        call("export", str(folder), "--best")


def test_commands_are_registered() -> None:
    assert {"train", "export", "report"} <= {command.name for command in build().registered_commands}
    assert commands.train.__doc__
