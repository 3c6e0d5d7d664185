"""Figures by hand: per environment, standard errors from per-task means, differences paired by task; report and display."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gym_servers.protocol import Failure, OmnigymError, Rollout, Segment
from rl_trainer.evaluation import evaluate, paired_difference, summarize, summary_table, task_means
from rl_trainer.metrics import MetricsLog, flatten, generation_entropy, rollout_figures, step_record
from rl_trainer.progress import Progress, duration
from rl_trainer.report import build_report, svg, write_summary
from rl_trainer.store import RunStore


def roll(task: str, reward: float | None, text: str = "x", env: str = "e", n: int = 4, **fields: Any) -> Rollout:
    segment = Segment(token_ids=list(range(n + 1)), mask=[0] + [1] * n, lp_gen=[9.0] + [-0.5] * n)
    failure = Failure(kind="timeout", message="late") if reward is None else None
    return Rollout(
        task_id=task,
        environment=env,
        group=task,
        reward=reward,
        failure=failure,
        segments=[segment],
        output=[{"type": "message", "role": "assistant", "content": text}],
        task={"responses_create_params": {"input": [{"role": "user", "content": "What <b>now</b>?"}]}},
        usage={"sampled_tokens": n},
        **fields,
    )


MANY = [
    roll("a", 1.0, "one", n=2),
    roll("a", 0.0, "two", n=4),
    roll("b", 0.5, "one", n=6, truncated=True),
    roll("b", 0.5, "one", n=8, parts={"unverifiable_output": True}),
    roll("c", None, "gone", n=100),
]


def test_figures_by_hand() -> None:
    f = rollout_figures(MANY)
    assert (f["rollouts"], f["failures"], f["failures_timeout"], f["unverifiable"]) == (5, 1, 1, 1)
    assert f["reward_mean"] == 0.5
    assert f["reward_std"] == pytest.approx(math.sqrt(0.5 / 3))
    assert (f["pass_rate"], f["zero_spread"], f["truncation"], f["distinct"]) == (0.25, 0.5, 0.25, 0.5)
    assert (f["length_mean"], f["segments_per_rollout"]) == (5.0, 1.0)
    assert f["length_p95"] == pytest.approx(7.7)
    assert generation_entropy(MANY) == 0.5


def test_segments_breaks_and_failures_are_counted_by_kind() -> None:
    def segment(reason: str) -> Segment:
        return Segment(token_ids=[1, 2], mask=[0, 1], lp_gen=[0.0, -1.0], break_reason=reason)

    three, two, one, crashed, late = (roll("a", reward) for reward in (1.0, 0.0, 0.0, None, None))
    three.segments = [segment(""), segment("template_changed_past"), segment("branch")]
    two.segments = [segment(""), segment("branch")]
    crashed.failure = Failure(kind="verifier_crash", message="x")
    f = rollout_figures([three, two, one, crashed, late])
    assert f["segments_per_rollout"] == 2.0
    assert (f["break_branch"], f["break_template_changed_past"]) == (2, 1)
    assert (f["failures"], f["failures_verifier_crash"], f["failures_timeout"]) == (2, 1, 1)


def test_a_failed_rollout_moves_no_figure() -> None:
    with_failure, without = rollout_figures(MANY), rollout_figures(MANY[:-1])
    for key in ("reward_mean", "pass_rate", "length_mean", "truncation", "distinct", "zero_spread"):
        assert with_failure[key] == without[key]


def test_standard_errors_are_of_tasks() -> None:
    before = [roll(t, r) for t, rs in (("a", (1.0, 0.0)), ("b", (0.0, 0.0)), ("c", (1.0, 1.0))) for r in rs]
    found = evaluate(before)["e"]
    assert task_means(before) == {"e/a": 0.5, "e/b": 0.0, "e/c": 1.0}
    assert (found["pass_rate"], found["n"], found["tasks"]) == (0.5, 6, 3)
    assert found["stderr"] == pytest.approx(0.5 / math.sqrt(3))  # std of (0.5, 0, 1) is 0.5
    assert task_means([roll("a", 0.5)]) == {"e/a": 0.0}  # half marks are no pass


def test_differences_are_paired_by_task() -> None:
    mean, error = paired_difference({"a": 0.0, "b": 0.5, "gone": 1.0}, {"a": 0.5, "b": 1.0, "new": 0.0})
    assert (mean, error) == (0.5, 0.0)  # both rose by a half: no error, though the levels differ
    mean, error = paired_difference({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 0.0})
    assert (mean, error) == (0.5, pytest.approx(0.5))


def test_summary_has_the_promised_form() -> None:
    before = [roll(t, r, env=e) for e in ("e", "f") for t, r in (("a", 0.0), ("b", 1.0))]
    after = [roll(t, 1.0, env=e) for e in ("e", "f") for t in ("a", "b")]
    summary = summarize(before, after, 12.5, 99.0)
    assert set(summary) == {"environments", "all", "seconds", "peak_rss_mb"}
    assert {"pass_rate", "stderr", "n"} <= set(summary["environments"]["e"]["before"])
    assert summary["environments"]["f"]["after"]["pass_rate"] == 1.0
    total = summary["all"]
    assert (total["before"], total["after"], total["difference"]) == (0.5, 1.0, 0.5)
    assert total["stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)  # std of (1, 0, 1, 0) over sqrt(4)
    json.dumps(summary)
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(summary))
    assert "+50.0±" in console.file.getvalue() and "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_display_has_a_line_for_the_bar_and_one_for_each_environment() -> None:
    progress = Progress(4, ["a", "b"], Console(file=io.StringIO()))
    progress.phase(1, "generate", 8)
    progress.rollout(roll("t", 1.0, env="a"))
    shown = Console(file=io.StringIO(), width=100, color_system=None)
    shown.print(progress)
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("step 2/4  generate 1/8 rollouts")
    assert set(lines[1].strip()) <= set("━╸ ") and lines[2].split() == ["a", "reward", "now", "1.00", "steps:", "-"]
    assert lines[3].split()[0] == "b"


def test_flatten_leaves_nan_out() -> None:
    assert dict(flatten({"a": {"b": 1, "c": math.nan}, "d": 2.5, "e": "text"})) == {"a/b": 1.0, "d": 2.5}


class Wandb(types.ModuleType):
    """The package's calls that a run makes."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []

    def init(self, **options: Any) -> Wandb:
        self.calls.append(("init", options))
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.calls.append(("define_metric", (name, step_metric)))

    def log(self, numbers: dict[str, float]) -> None:
        self.calls.append(("log", numbers))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_wandb_gets_the_same_numbers_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_MODE", "")  # so that what the log sets is undone after the test
    monkeypatch.delenv("WANDB_MODE")
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    store = RunStore.create(tmp_path, "demo", "name: demo\n")
    log = MetricsLog(store, wandb=True)
    assert os.environ["WANDB_MODE"] == "offline"
    log.write({"step": 2, "evaluation": "eval_000002", "environments": {"e": {"pass_rate": 0.5}}})
    log.write({"step": 1, "loss": 0.25, "environments": {"e": {"reward_mean": math.nan}}})
    log.close()
    name = store.folder.name
    options = {"project": "omnigym", "name": name, "id": name, "resume": "allow", "dir": str(store.folder)}
    assert package.calls == [
        ("init", options),
        ("define_metric", ("*", "step")),  # steps go back after an evaluation, which W&B's own counter would drop
        ("log", {"evaluation/eval_000002/environments/e/pass_rate": 0.5, "step": 2}),
        ("log", {"loss": 0.25, "step": 1}),
        ("finish", None),
    ]
    assert [row["step"] for row in store.metrics()] == [2, 1] and list((store.folder / "tensorboard").iterdir())


def test_without_the_package_wandb_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(OmnigymError, match="wandb: true needs the package: pip install wandb, or set wandb=false"):
        MetricsLog(RunStore.create(tmp_path, "demo", "name: demo\n"), wandb=True)


def record(step: int) -> dict[str, Any]:
    trained = {
        "loss": 0.1,
        "entropy": 1.0,
        "abs_delta": 0.03,
        "grad_norm": 1.0 + step,
        "per_environment": {"e": {"entropy": 1.5}},
        "worst_tokens": [],
    }
    return step_record(step, MANY, trained, {"trained": 3}, {"generate": 2.0}, {"tokens_per_second": 10.0})


def test_the_record_joins_rollouts_and_training() -> None:
    made = record(3)
    assert (made["step"], made["loss"], made["environments"]["e"]["entropy"]) == (3, 0.1, 1.5)
    assert "worst_tokens" not in made
    assert made["environments"]["e"]["reward_mean"] == 0.5


def test_the_report_is_one_file_without_a_network(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "demo", "name: demo\n")
    with pytest.raises(OmnigymError, match="no step yet"):
        build_report(store)
    for step in range(3):
        store.log(record(step))
        writer = store.writer(f"step_{step:06d}")
        for rollout in MANY:
            writer.add(rollout.model_copy(update={"output": [{"role": "assistant", "content": "<script>x</script>"}]}))
        writer.commit()
    body = build_report(store).read_text()
    assert body.count("<polyline") == 16  # a curve and its place in the legend, in eight figures
    assert "held-out" not in body
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", body)
    assert "<script>" not in body and "&lt;script&gt;" in body  # model output is shown, never run
    assert "What &lt;b&gt;now" in body


def test_validations_are_a_curve_over_the_steps_that_were_done(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "demo", "name: demo\n")
    for step, rate in ((0, 0.25), (4, 0.5)):
        store.log({"step": step, "evaluation": f"eval_{step:06d}", "environments": {"e": {"pass_rate": rate}}})
    store.log(record(3))
    figure = build_report(store).read_text().partition("pass rate on held-out tasks")[2].partition("</figure>")[0]
    curve = re.search(r'points="([^"]+)"', figure)
    assert curve is not None
    (_, low), (_, high) = (point.split(",") for point in curve[1].split())
    assert float(high) == 10.0 and float(low) == (10.0 + 185.0) / 2  # the axis goes from 0 to the best, 0.5


def test_no_two_of_a_dozen_curves_look_alike() -> None:
    picture = svg({f"e{k:02d}": [(0, k), (1, k)] for k in range(12)})
    looks = re.findall(r'stroke="(#\w+)" stroke-width="1.8" stroke-dasharray="([^"]*)"', picture)
    assert len(looks) == 24 and len(set(looks)) == 12


def test_a_summary_with_one_task_is_json_and_is_shown(tmp_path: Path) -> None:
    """The standard error of one task does not exist: null in the file, a dash in the report, not a crash."""
    store = RunStore.create(tmp_path, "demo", "name: demo\n")
    store.log(record(0))
    write_summary(store, summarize([roll("a", 0.0)], [roll("a", 1.0)], 1.0, 1.0))
    text = (store.folder / "summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["environments"]["e"]["before"]["stderr"] is None
    assert "100.0% ± -" in build_report(store).read_text()


def test_curves_leave_out_what_is_not_finite() -> None:
    picture = svg({"a": [(0, 1.0), (1, math.nan), (2, 3.0)]})
    points = re.search(r'points="([^"]+)"', picture)
    assert points is not None and len(points[1].split()) == 2
    assert svg({"a": [(0, math.nan)]}) == "<p>(no data)</p>"


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    with Progress(4, ["e"], console) as progress:
        progress.phase(0, "generate", 5)
        for rollout in MANY:
            progress.rollout(rollout)
        progress.step(record(0))
        progress.note("a note")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 0: generate, 5 rollouts" in text
    assert "step 1/4: reward e 0.50, 10 tokens/s, 2 s, 0:06 left" in text and "a note" in text
    assert "\x1b" not in text


def test_the_live_display_shows_what_is_asked_for() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = Progress(4, ["e"], console)
    progress.phase(1, "generate", 5)
    for rollout in MANY:
        progress.rollout(rollout)
    with console.capture() as capture:
        console.print(progress)
    shown = capture.get()
    assert "step 2/4" in shown and "5/5 rollouts" in shown and "1 failed" in shown and "reward now 0.50" in shown
    assert (duration(75), duration(3700), duration(math.nan)) == ("1:15", "1:01:40", "?")
