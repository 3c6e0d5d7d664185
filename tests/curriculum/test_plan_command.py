"""`omnigym curriculum plan`, end to end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from profiles import profile_of
from typer.testing import CliRunner

from curriculum.commands import PlannedRun, register
from curriculum.figures import columns, left_in_bins, ticks
from curriculum.options import CurriculumConfig, CurriculumOptions
from curriculum.profile import write_profile
from gym_servers.protocol import OmnigymError
from rl_trainer.config import RunConfig

RUN = {
    "model": "m",
    "steps": 5,
    "tasks_per_step": 2,
    "mixture": {"math": 1.0},
    "sampler": "gaussian",
    "curriculum": {"start_mean": 0.5, "end_mean": 0.5, "sigma": math.sqrt(0.125 / math.log(3))},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The domain worked out by hand in test_plan.py: per step (pass rate 0, pass rate 1/2) 1 1, 0 2, 1 1, 2 0, 1 1."""
    write_profile(
        tmp_path / "p.parquet",
        profile_of({"math": [0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 1.0], "<other>": [0.5]}, n=2, weights="3f1c"),
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


def invoke(folder: Path, *more: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
    given = ["--config", str(folder / "run.yaml"), "--out", str(folder / "plan.html"), *more]
    return CliRunner().invoke(
        app, ["plan", *given] if len(app.registered_groups) == 0 else ["curriculum", "plan", *given]
    )


class Reader(HTMLParser):
    """Checks that elements close as they open; collects text and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_plan_worked_out_by_hand_is_shown(folder: Path) -> None:
    done = invoke(folder, "--profile", str(folder / "p.parquet"), "--json", str(folder / "plan.json"))
    assert done.exit_code == 0, done.output
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["mean"] == [0.25, 0.5, 0.25, 0.0, 0.25] and plan["spread"] == [0.25, 0.0, 0.25, 0.0, 0.25]
    assert plan["target"] == [0.5] * 5 and plan["unused"] == {"<other>": 1} and plan["weights"] == "3f1c"
    (domain,) = plan["domains"]
    assert (domain["tasks"], domain["solved"], domain["held_out"], domain["eligible"]) == (9, 1, 0, 8)
    assert (domain["drawn"], domain["epochs"], domain["never_seen"], domain["counts"]) == (10, 1.25, 0, [2] * 5)
    hard, easy = domain["bins"]
    assert (hard["rate"], hard["tasks"], hard["drawn"], hard["dry"]) == (0.0, 4, 5, [3])
    assert hard["left"] == [3, 3, 2, 0, 3]
    assert (easy["rate"], easy["tasks"], easy["drawn"], easy["dry"]) == (0.5, 4, 5, [2])
    assert easy["left"] == [3, 1, 0, 0, 3]

    reader = Reader()
    reader.feed((folder / "plan.html").read_text())
    assert reader.open == [] and reader.addresses == [] and reader.tags.count("svg") == 4
    assert "script" not in reader.tags and "link" not in reader.tags
    shown = " ".join(reader.texts)
    for text in (
        "math: 2 of 2 bins run dry, the first in step 2 (pass rate 0.5)",
        "0 of 8 eligible tasks are never seen (0.0%).",
        "without a share in the mixture: <other> (1).",
        "is that of step 3: pass rate 0.00 where 0.50 is wanted",
    ):
        assert text in shown and text in done.output
    assert "math" in done.output and "0.25 ± 0.25" in done.output


def test_never_seen_tasks_are_counted(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump({**RUN, "steps": 2}))
    done = invoke(folder, "--profile", str(folder / "p.parquet"))
    assert "4 of 8 eligible tasks are never seen (50.0%)." in done.output


def test_another_order_is_shown_by_pass_rate_too(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        yaml.safe_dump({**RUN, "sampler": "sequential", "curriculum": {"profile": str(folder / "p.parquet")}})
    )
    assert invoke(folder, "--json", str(folder / "plan.json")).exit_code == 0
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["mean"] == [0.0, 0.0, 0.5, 0.5, 0.0]
    hard, easy = plan["domains"][0]["bins"]
    assert hard["left"] == [2, 0, 0, 0, 2] and easy["left"] == [4, 4, 2, 0, 4]
    assert hard["dry"] == [1] and easy["dry"] == [3]


def test_a_run_without_a_sampler_is_told_what_is_shown(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump({key: value for key, value in RUN.items() if key != "sampler"}))
    assert "names no sampler: this is what sampler: gaussian would do" in invoke(
        folder, "--profile", str(folder / "p.parquet")
    ).output.replace("\n", " ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "run.yaml: key 'steps': .*found None"),
        ({"steps": 0}, "run.yaml: key 'steps': .*found 0"),
        ({"mixture": [1]}, "run.yaml: key 'mixture'"),
        ({"mixture": {}}, "at least one domain"),
        ({"mixture": {"math": 1, "poetry": 1}}, "'poetry' has a share in the mixture and no task in the profile"),
        ({"sampler": "gausian"}, "run.yaml: key 'sampler': .*'gausian'"),
        (
            {"curriculum": {"sigmo": 1}},
            "run.yaml: unknown key 'curriculum.sigmo'; the keys of curriculum are .*'sigma'",
        ),
        ({"curriculum": {"sigma": 0}}, "run.yaml: key 'curriculum.sigma': .*found 0"),
        ({"curriculum": {"start_mean": 75}}, "run.yaml: key 'curriculum.start_mean': .*found 75"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump({**RUN, **change}))
    with pytest.raises(OmnigymError, match=message):
        raise invoke(folder, "--profile", str(folder / "p.parquet")).exception
    assert not (folder / "plan.html").exists()


def test_what_is_no_configuration_is_named(folder: Path) -> None:
    for text, message in [
        ("[1]", "expected keys and values, found list"),
        ("a: [", "not valid YAML"),
        (None, "no conf"),
    ]:
        if text is None:
            (folder / "run.yaml").unlink()
        else:
            (folder / "run.yaml").write_text(text)
        with pytest.raises(OmnigymError, match=message):
            raise invoke(folder, "--profile", str(folder / "p.parquet")).exception


def test_a_missing_key_and_a_missing_profile_are_named(folder: Path) -> None:
    with pytest.raises(OmnigymError, match=r"names no curriculum.profile: give --profile"):
        raise invoke(folder).exception
    with pytest.raises(OmnigymError, match=r"no profile '.*absent\.parquet'"):
        raise invoke(folder, "--profile", str(folder / "absent.parquet")).exception
    (folder / "run.yaml").write_text("steps: 3\n")
    with pytest.raises(OmnigymError, match=r"run.yaml: key 'mixture' is required and absent"):
        raise invoke(folder, "--profile", str(folder / "p.parquet")).exception


def test_the_defaults_are_the_run_s() -> None:
    for name in ("tasks_per_step", "seed"):
        assert PlannedRun.model_fields[name].default == RunConfig.model_fields[name].default
    for name in ("start_mean", "end_mean", "sigma", "hold_out_unsolved"):
        assert CurriculumConfig.model_fields[name].default == CurriculumOptions.model_fields[name].default


def test_the_command_is_there(folder: Path) -> None:
    program = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
    given = [
        "--profile",
        str(folder / "p.parquet"),
        "--config",
        str(folder / "run.yaml"),
        "--out",
        str(folder / "out.html"),
    ]
    done = subprocess.run([*program, "curriculum", "plan", *given], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "5 steps of 2 tasks, order gaussian, seed 0" in done.stdout and (folder / "out.html").is_file()


def test_axes_have_round_values() -> None:
    assert ticks(1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(128) == [0, 20, 40, 60, 80, 100, 120]
    assert ticks(1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and ticks(5) == [0, 1, 2, 3, 4, 5]
    assert columns(3) == [0, 1, 2] and columns(600)[-1] == 599 and len(columns(600)) == 200


def test_an_empty_bin_is_hatched_and_columns_of_one_shade_are_one() -> None:
    shown = left_in_bins([0.5], [4], [[4, 4, 0, 0]])
    assert shown.count('<rect x="') == 2 and shown.count('fill="url(#dry)"') == 1
    assert np.isclose(float(shown.split('<rect x="')[2].split('"')[0]), 48 + 2 * (900 - 60) / 4)
