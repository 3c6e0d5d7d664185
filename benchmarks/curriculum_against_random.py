"""The Gaussian curriculum against random sampling (report, figure 7): the same configuration, tasks, ratios, seeds and budget.

`omnigym profile` once, then `omnigym train` for (gaussian, random) x seeds, one after another, each a process of its own in a folder of
its own under --out. Both arms choose among the same tasks: those that the profile does not say are always solved. It is resumable: a
run that is finished is only read, one that was cut off is resumed. At the end, or with --table-only at any time over the seeds that both
arms have finished: a table in Markdown (table.md), curves with bands of one standard error over seeds (curves.svg), and result.json.

A held-out task's pass rate is the mean over its samples; an environment's is the mean over its tasks. Standard errors are over seeds,
and the difference between the arms is paired by seed: with few seeds they are rough, and the table says how many there are.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gym_servers.passk import mean_and_stderr

ARMS = ("gaussian", "random")
COLOURS = {"gaussian": "#1b6ca8", "random": "#c0504d"}
OMNIGYM = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
ROOT = Path(__file__).resolve().parents[1]
Band = list[tuple[float, float, float]]
"""(step, mean, standard error)."""


def run_folder(parent: Path) -> Path | None:
    """The run that was begun under `parent`, if any."""
    found = sorted(path.parent for path in parent.glob("*/config.yaml"))
    return found[-1] if found else None


def train(config: Path, out: Path, arm: str, seed: int, overrides: Sequence[str]) -> None:
    """One run to its end, from wherever it stands."""
    parent = out / f"{arm}-{seed}"
    folder = run_folder(parent)
    if folder is not None and (folder / "summary.json").is_file():
        return
    if folder is not None:
        arguments = ["train", "--resume", str(folder)]
    else:
        own = [f"sampler={arm}", f"seed={seed}", f"name={arm}-{seed}", f"runs_folder={parent}"]
        arguments = ["train", str(config), f"curriculum.profile={out / 'profile.parquet'}", *own, *overrides]
    print(f"{arm}, seed {seed}: omnigym {' '.join(arguments)}", flush=True)
    subprocess.run([*OMNIGYM, *arguments], check=True)


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of a run's metrics.jsonl."""
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def finished(out: Path, seeds: Sequence[int]) -> dict[int, dict[str, Path]]:
    """Run folders by seed and arm, of the seeds that both arms have finished."""
    found: dict[int, dict[str, Path]] = {}
    for seed in seeds:
        folders = {arm: run_folder(out / f"{arm}-{seed}") for arm in ARMS}
        ended = {arm: f for arm, f in folders.items() if f is not None and (f / "summary.json").is_file()}
        if len(ended) == len(ARMS):
            found[seed] = ended
    return found


def held_out(summary: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Pass rates (before, after) by environment, and over `all` held-out tasks."""
    rates = {
        name: (entry["before"]["pass_rate"], entry["after"]["pass_rate"])
        for name, entry in sorted(summary["environments"].items())
    }
    return {**rates, "all": (summary["all"]["before"], summary["all"]["after"])}


def compare(summaries: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """summaries: of each seed, by arm. By environment: of each arm the means of before, after and gain = after - before, with the gain's
    standard error over seeds; and the difference of the gains, gaussian - random, paired by seed, with its own."""
    rates = [{arm: held_out(summary) for arm, summary in by_arm.items()} for by_arm in summaries]
    result: dict[str, dict[str, Any]] = {}
    for name in rates[0][ARMS[0]]:
        entry: dict[str, Any] = {}
        gains: dict[str, list[float]] = {}
        for arm in ARMS:
            pairs = [by_arm[arm][name] for by_arm in rates]
            gains[arm] = [after - before for before, after in pairs]
            gain, error = mean_and_stderr(gains[arm])
            before, after = (mean_and_stderr([pair[k] for pair in pairs])[0] for k in (0, 1))
            entry[arm] = {"before": before, "after": after, "gain": gain, "stderr": error}
        paired = [one - other for one, other in zip(gains["gaussian"], gains["random"], strict=True)]
        entry["difference"], entry["stderr"] = mean_and_stderr(paired)
        result[name] = entry
    return result


def percent(value: float, error: float | None = None, sign: str = "") -> str:
    """In percent, with its standard error where there is one."""
    text = f"{100 * value:{sign}.1f}"
    if error is None:
        return text
    return f"{text} ± {100 * error:.1f}" if math.isfinite(error) else f"{text} ± ?"


def table(result: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The comparison in Markdown, in percent."""
    head = ["held-out", *(f"{arm} {what}" for arm in ARMS for what in ("before", "after", "gain")), "gaussian - random"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, entry in result.items():
        cells = [name]
        for arm in ARMS:
            found = entry[arm]
            cells += [percent(found["before"]), percent(found["after"]), percent(found["gain"], found["stderr"], "+")]
        lines.append(f"| {' | '.join([*cells, percent(entry['difference'], entry['stderr'], '+')])} |")
    note = f"Pass rates in percent; ± is one standard error over {len(seeds)} seeds ({', '.join(map(str, seeds))}), differences paired by seed."
    return "\n".join([*lines, "", note, ""])


def reward(record: Mapping[str, Any]) -> float:
    """Mean reward of a step's or an evaluation's rollouts that did not fail."""
    parts = [
        (entry["reward_mean"], entry.get("rollouts", entry.get("n", 0)))
        for entry in record["environments"].values()
        if entry["reward_mean"] is not None
    ]
    rollouts = sum(count for _, count in parts)
    return sum(mean * count for mean, count in parts) / rollouts if rollouts else math.nan


def band(folders: Sequence[Path], key: str) -> Band:
    """Over runs: training reward, batch difficulty (`profile_pass_rate`) or validation reward, by step, where every run has it."""
    values: dict[float, list[float]] = {}
    for folder in folders:
        for record in records(folder):
            if key == "validation":
                value = reward(record) if "evaluation" in record else None
            elif "evaluation" in record:
                value = None
            else:
                value = reward(record) if key == "training" else record.get(key)
            if value is not None and math.isfinite(value):
                values.setdefault(record["step"], []).append(float(value))
    return [(step, *mean_and_stderr(found)) for step, found in sorted(values.items()) if len(found) == len(folders)]


def panel(title: str, bands: Mapping[str, Band], left: float, width: float = 360, height: float = 240) -> str:
    """One figure: a line for each arm, and around it one standard error."""
    points = [point for found in bands.values() for point in found]
    if not points:
        return ""
    edges = [edge for _, y, e in points for edge in ((y - e, y + e) if math.isfinite(e) else (y, y))]
    low_x, high_x = min(x for x, _, _ in points), max(x for x, _, _ in points)
    low, high = min(edges), max(edges)
    margin = 0.05 * (high - low) or 0.05
    low, high = low - margin, high + margin
    x0, x1, y0, y1 = left + 48, left + width - 12, 34.0, height - 36

    def at(x: float, y: float) -> str:
        across = (x - low_x) / ((high_x - low_x) or 1.0)
        return f"{x0 + across * (x1 - x0):.1f},{y1 - (y - low) / (high - low) * (y1 - y0):.1f}"

    parts = [f'<text x="{left + 8}" y="20" font-weight="600" font-size="13">{html.escape(title)}</text>']
    for k in range(5):
        value = low + (high - low) * k / 4
        y = y1 - (y1 - y0) * k / 4
        parts.append(f'<line x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{x0}" y="{height - 18}">{low_x:g}</text>')
    parts.append(f'<text x="{x1}" y="{height - 18}" text-anchor="end">step {high_x:g}</text>')
    for arm, found in bands.items():
        sure = [(x, y, e if math.isfinite(e) else 0.0) for x, y, e in found]
        outline = [at(x, y + e) for x, y, e in sure] + [at(x, y - e) for x, y, e in reversed(sure)]
        parts.append(f'<polygon points="{" ".join(outline)}" fill="{COLOURS[arm]}" fill-opacity="0.18"/>')
        line = " ".join(at(x, y) for x, y, _ in found)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[arm]}" stroke-width="1.8"/>')
    return "".join(parts)


def plot(runs: Mapping[int, Mapping[str, Path]]) -> str:
    """curves.svg."""
    panels = []
    for k, (title, key) in enumerate(
        (
            ("training reward", "training"),
            ("reward on held-out tasks", "validation"),
            ("batch difficulty (profile's pass rate)", "profile_pass_rate"),
        )
    ):
        bands = {arm: band([folders[arm] for folders in runs.values()], key) for arm in ARMS}
        panels.append(panel(title, bands, 360.0 * k))
    legend = "".join(
        f'<rect x="{10 + 110 * k}" y="250" width="12" height="12" fill="{COLOURS[arm]}"/>'
        f'<text x="{28 + 110 * k}" y="260">{arm}</text>'
        for k, arm in enumerate(ARMS)
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="1080" height="272" font-family="sans-serif" font-size="11">'
    return f'{head}<rect width="1080" height="272" fill="#fff"/>{"".join(panels)}{legend}</svg>\n'


def main() -> None:
    """Profile, run what is not finished, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "rl_trainer/configs/curriculum.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the profile, the runs and the result")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table-only", action="store_true", help="run nothing, compare what is finished")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value of the configuration, such as steps=10")
    options = parser.parse_intermixed_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        # The tasks that are profiled are those of the configuration's own seeds; a run's seed changes what is drawn, not the pool.
        profile = [
            "profile",
            "--config",
            str(options.config),
            "--out",
            str(out / "profile.parquet"),
            *options.overrides,
        ]
        subprocess.run([*OMNIGYM, *profile], check=True)
        for seed in options.seeds:
            for arm in ARMS:
                train(options.config, out, arm, seed, options.overrides)
    runs = finished(out, options.seeds)
    if not runs:
        sys.exit(f"{out}: no seed that both arms have finished")
    summaries = [
        {arm: json.loads((folder / "summary.json").read_text()) for arm, folder in folders.items()}
        for folders in runs.values()
    ]
    result = compare(summaries)
    text = table(result, list(runs))
    (out / "table.md").write_text(text)
    (out / "curves.svg").write_text(plot(runs))
    resolved = yaml.safe_load((next(iter(runs.values()))["gaussian"] / "config.yaml").read_text())
    body = {
        "seeds": list(runs),
        "environments": result,
        "steps": resolved["steps"],
        "group_size": resolved["group_size"],
    }
    (out / "result.json").write_text(json.dumps(body, indent=2) + "\n")
    print(text)
    print(f"{out / 'table.md'}\n{out / 'curves.svg'}")


if __name__ == "__main__":
    main()
