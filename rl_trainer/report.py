"""report.html of a run: one self-contained file with curves as inline SVG and example rollouts. It opens without a network."""

from __future__ import annotations

import html
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from gym_servers.protocol import OmnigymError, Rollout
from rl_trainer.store import RunStore, step_label, write_whole

DASHES = ("", "6 3", "2 3")
"""After as many curves as there are colours the next of these begins, so that no two of 21 look the same."""
COLOURS = ("#1b6ca8", "#c0504d", "#4f8f3a", "#8064a2", "#d08a1d", "#2a9d8f", "#6d6d6d")
EXAMPLES = 10
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}figure{display:inline-block;vertical-align:top;margin:0 1rem 1rem 0}
figcaption{font-weight:600}details{margin:.4rem 0;border-left:3px solid #ccc;padding-left:.7rem}
pre{white-space:pre-wrap;background:#f6f6f6;padding:.5rem}svg text{font:11px system-ui,sans-serif;fill:#444}"""

Curve = Sequence[tuple[float, float]]


def svg(curves: Mapping[str, Curve], marks: Sequence[int] = (), width: int = 420, height: int = 210) -> str:
    """Curves over steps as an SVG; points that are not finite are left out. marks: steps from which there is a new plan."""
    clean = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in curves.items()}
    points = [point for curve in clean.values() for point in curve]
    if not points:
        return "<p>(no data)</p>"
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(0.0, min(y for _, y in points)), max(y for _, y in points)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0
    left, bottom, top = 56, height - 25, 10

    def place(x: float, y: float) -> str:
        return f"{left + (x - low_x) / span_x * (width - left - 10):.1f},{bottom - (y - low_y) / span_y * (bottom - top):.1f}"

    parts = [f'<svg width="{width}" height="{height + 18 * len(clean)}" role="img">']
    for k in range(5):
        value = low_y + span_y * k / 4
        y = bottom - (bottom - top) * k / 4
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{left}" y="{height - 8}">{low_x:g}</text>')
    parts.append(f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">step {high_x:g}</text>')
    for step in marks:
        left_x, foot = place(step, low_y).split(",")
        parts.append(
            f'<line x1="{left_x}" x2="{left_x}" y1="{top}" y2="{foot}" stroke="#888" stroke-dasharray="4 3">'
            f"<title>new profile at step {step}</title></line>"
        )
    for k, (name, curve) in enumerate(clean.items()):
        dash = DASHES[k // len(COLOURS) % len(DASHES)]
        look = f'fill="none" stroke="{COLOURS[k % len(COLOURS)]}" stroke-width="1.8" stroke-dasharray="{dash}"'
        line = " ".join(place(x, y) for x, y in curve)
        parts.append(f'<polyline points="{line}" {look}/>')
        y = height + 12 + 18 * k
        parts.append(f'<polyline points="{left},{y - 4} {left + 24},{y - 4}" {look}/>')
        parts.append(f'<text x="{left + 32}" y="{y}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def curves_of(records: Sequence[dict[str, Any]], key: str) -> dict[str, Curve]:
    """A figure per environment over the steps."""
    names = sorted({name for record in records for name in record.get("environments", {})})
    return {
        name: [
            (record["step"], float(value))
            for record in records
            if (value := record["environments"].get(name, {}).get(key)) is not None
        ]
        for name in names
    }


def prompt_of(rollout: Rollout) -> str:
    """The last user message of a rollout's task."""
    given = rollout.task.get("responses_create_params", {}).get("input", "")
    if isinstance(given, str):
        return given
    for item in reversed(given):
        content = item.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            return "".join(str(part.get("text", "")) for part in content)
    return ""


def draw_examples(store: RunStore, steps: Sequence[int], count: int = EXAMPLES) -> list[tuple[str, Rollout]]:
    """Rollouts drawn at random (seeded): half of the first step, half of the last; of evaluations where there are any."""
    labels = [label for label in ("eval_before", "eval_after") if store.committed(label)]
    if not labels and steps:
        labels = [label for label in (step_label(min(steps)), step_label(max(steps))) if store.committed(label)]
    chosen: list[tuple[str, Rollout]] = []
    for label in dict.fromkeys(labels):
        rollouts = sorted(store.read(label), key=lambda r: (r.group, r.attempt))
        draw = random.Random(f"examples|{label}")
        chosen += [(label, rollout) for rollout in draw.sample(rollouts, min(count, len(rollouts)))]
    return chosen


def write_summary(store: RunStore, summary: dict[str, Any]) -> None:
    """Write summary.json; figures that do not exist (the error of a single task) are null."""
    write_whole(store.folder / "summary.json", orjson.dumps(summary, option=orjson.OPT_INDENT_2))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _summary(store: RunStore) -> str:
    path = store.folder / "summary.json"
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text())
    rows = []
    for name, entry in summary["environments"].items():
        first, last = entry["before"], entry["after"]
        cells = [
            *(f"{_number(e['pass_rate'], '.1%')} ± {_number(e['stderr'], '.1%')}" for e in (first, last)),
            f"{_number(entry['difference'], '+.1%')} ± {_number(entry['stderr'], '.1%')}",
            *(
                f"{_number(first[key], form)} → {_number(last[key], form)}"
                for key, form in (
                    ("distinct", ".0%"),
                    ("length_mean", ".0f"),
                    ("truncation", ".0%"),
                    ("entropy", ".2f"),
                )
            ),
        ]
        rows.append(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    total = summary["all"]
    rows.append(
        f"<tr><td>all</td><td>{_number(total['before'], '.1%')}</td><td>{_number(total['after'], '.1%')}</td>"
        f"<td>{_number(total['difference'], '+.1%')} ± {_number(total['stderr'], '.1%')}</td>{'<td></td>' * 4}</tr>"
    )
    head = "".join(
        f"<th>{t}</th>"
        for t in ("held-out", "before", "after", "difference", "distinct", "length", "truncated", "entropy")
    )
    return (
        f"<h2>Before and after</h2><table><tr>{head}</tr>{''.join(rows)}</table>"
        f"<p>{summary['seconds']:.0f} s, {summary['peak_rss_mb']:.0f} MiB at the peak.</p>"
    )


def build_report(store: RunStore) -> Path:
    """Write report.html. Raises OmnigymError where the run has no metrics yet."""
    lines = list(store.metrics())
    records = [record for record in lines if "evaluation" not in record]
    if not records:
        raise OmnigymError(f"{store.metrics_file} has no step yet: nothing to report")
    figures, marks = [], list(store.profiles())
    validations = sorted((record for record in lines if "evaluation" in record), key=lambda record: record["step"])
    if len({record["step"] for record in validations}) > 1:
        curves = svg(curves_of(validations, "pass_rate"), marks)
        figures.append(f"<figure><figcaption>pass rate on held-out tasks</figcaption>{curves}</figure>")
    for title, key in (
        ("reward", "reward_mean"),
        ("pass rate", "pass_rate"),
        ("answer length (tokens)", "length_mean"),
        ("entropy (nats a token)", "entropy"),
        ("truncated", "truncation"),
        ("groups with equal rewards", "zero_spread"),
    ):
        figures.append(f"<figure><figcaption>{title}</figcaption>{svg(curves_of(records, key), marks)}</figure>")
    difficulty = {
        title: [(record["step"], float(record[key])) for record in records if record.get(key) is not None]
        for title, key in (
            ("profile's pass rate of the batch", "profile_pass_rate"),
            ("observed", "observed_pass_rate"),
        )
    }
    if any(difficulty.values()):
        figures.insert(0, f"<figure><figcaption>batch difficulty</figcaption>{svg(difficulty, marks)}</figure>")
    overall = (("mean |lp - lp_gen|", "abs_delta"), ("gradient norm", "grad_norm"))
    for title, key in overall:
        curve = {title: [(r["step"], float(r[key])) for r in records if r.get(key) is not None]}
        figures.append(f"<figure><figcaption>{title}</figcaption>{svg(curve, marks)}</figure>")
    if marks:
        steps = ", ".join(f"new profile at step {step}" for step in marks)
        figures.append(
            f"<p>Dashed lines: validation had come to a plateau, or a new profile was asked for ({steps}).</p>"
        )
    examples = []
    for label, rollout in draw_examples(store, [record["step"] for record in records]):
        result = f"reward {rollout.reward:g}" if rollout.reward is not None else f"failed: {rollout.failure}"
        examples.append(
            f"<details><summary>{label}, {html.escape(rollout.environment)}: {html.escape(result)}</summary>"
            f"<pre>{html.escape(prompt_of(rollout))}</pre><pre>{html.escape(rollout.text)}</pre>"
            f"<p>{html.escape(rollout.explanation)}</p></details>"
        )
    body = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(store.folder.name)}</title>"
        f"<style>{STYLE}</style></head><body><h1>{html.escape(store.folder.name)}</h1>{_summary(store)}"
        f"<h2>Curves</h2>{''.join(figures)}<h2>Rollouts drawn at random</h2>{''.join(examples)}"
        f"<h2>Configuration</h2><pre>{html.escape((store.folder / 'config.yaml').read_text())}</pre></body></html>"
    )
    path = store.folder / "report.html"
    write_whole(path, body.encode())
    return path
