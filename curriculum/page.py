"""plan.html: a plan as one self-contained file, which opens without a network, and as a table for the terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from curriculum.figures import curves, difficulty, left_in_bins, stacked
from curriculum.summary import BinSummary, DomainSummary, PlanSummary

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}figure{margin:0 0 1.2rem 0}figcaption{font-weight:600}
svg{max-width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#444}.note{color:#555}"""
DRY_SHOWN = 6
HEADER = ("domain", "share", "profiled", "always solved", "held out", "eligible", "drawn", "epochs", "never seen")


def build_page(plan: PlanSummary, profile: str, config: str) -> str:
    """The whole page. `profile` and `config` name the files that the plan was made from."""
    title = f"Plan of {plan.steps} steps of {plan.batch_size} tasks"
    domains = "".join(_section(domain) for domain in plan.domains)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style></head>"
        f"<body><h1>{title}</h1><p>Order {plan.order}, seed {plan.seed}. Profile {html.escape(profile)}, made with the weights "
        f"{html.escape(plan.weights)}. Configuration {html.escape(config)}.</p>"
        f"{_table(HEADER, [_cells(domain) for domain in plan.domains])}"
        f"{''.join(f'<p>{html.escape(note)}</p>' for note in notes(plan))}"
        f"<h2>Difficulty</h2><figure><figcaption>Batch difficulty</figcaption>"
        f"{difficulty(plan.mean, plan.spread, plan.target)}</figure>"
        f"<figure><figcaption>Mean pass rate by domain</figcaption>"
        f"{curves({domain.name: domain.mean for domain in plan.domains}, plan.target)}</figure>"
        f"<h2>Tasks per domain and step</h2><figure>{stacked({d.name: d.counts for d in plan.domains})}</figure>"
        "<h2>What is left</h2><p class='note'>Of each pass rate, the tasks not yet drawn in the domain's epoch: the paler, the fewer; "
        f"hatched, none. The domain's next epoch begins once all of its tasks are drawn.</p>{domains}</body></html>"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cells(domain: DomainSummary) -> list[str]:
    counts = (domain.tasks, domain.solved, domain.held_out, domain.eligible, domain.drawn)
    return [
        domain.name,
        f"{domain.share:.1%}",
        *(f"{count:,}" for count in counts),
        f"{domain.epochs:.2f}",
        f"{domain.never_seen:,}",
    ]


def _section(domain: DomainSummary) -> str:
    rows = [
        [f"{b.rate:.3g}", f"{b.tasks:,}", f"{b.drawn:,}", f"{b.drawn / b.tasks:.2f}", _dry(b)]
        for b in reversed(domain.bins)
    ]
    figure = left_in_bins([b.rate for b in domain.bins], [b.tasks for b in domain.bins], [b.left for b in domain.bins])
    return (
        f"<h3>{html.escape(domain.name)}</h3><figure>{figure}</figure>"
        f"{_table(('pass rate', 'tasks', 'drawn', 'per task', 'runs dry in step'), rows)}"
    )


def _dry(found: BinSummary) -> str:
    if not found.dry:
        return "never"
    shown = ", ".join(str(step) for step in found.dry[:DRY_SHOWN])
    return shown + (f" and {len(found.dry) - DRY_SHOWN} times more" if len(found.dry) > DRY_SHOWN else "")


def notes(plan: PlanSummary) -> list[str]:
    """What a reader should know before paying for the run, a sentence each."""
    found = []
    for domain in plan.domains:
        first = sorted((b.dry[0], b.rate) for b in domain.bins if b.dry)
        if first:
            step, rate = first[0]
            found.append(
                f"{domain.name}: {len(first)} of {len(domain.bins)} bins run dry, the first in step {step} (pass rate {rate:.3g}); "
                "from then on the nearest bins fill in."
            )
    never = sum(domain.never_seen for domain in plan.domains)
    eligible = sum(domain.eligible for domain in plan.domains)
    found.append(f"{never:,} of {eligible:,} eligible tasks are never seen ({never / eligible:.1%}).")
    if plan.unused:
        names = ", ".join(f"{name} ({tasks:,})" for name, tasks in plan.unused.items())
        found.append(f"Profiled, but without a share in the mixture: {names}.")
    furthest = max(range(plan.steps), key=lambda step: abs(plan.mean[step] - plan.target[step]))
    if plan.order == "gaussian":
        found.append(
            f"The batch furthest from the target is that of step {furthest}: pass rate {plan.mean[furthest]:.2f} where "
            f"{plan.target[furthest]:.2f} is wanted."
        )
    return found


def domain_table(plan: PlanSummary) -> Table:
    """The domains, for a terminal of 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("domain", no_wrap=True)
    for name in ("share", "eligible of profiled", "drawn", "epochs", "never seen"):
        table.add_column(name, justify="right")
    for domain in plan.domains:
        eligible, drawn = f"{domain.eligible:,} of {domain.tasks:,}", f"{domain.drawn:,}"
        table.add_row(
            domain.name, f"{domain.share:.1%}", eligible, drawn, f"{domain.epochs:.2f}", f"{domain.never_seen:,}"
        )
    return table


def difficulty_table(plan: PlanSummary) -> Table:
    """Difficulty of five batches from the first to the last, for the terminal."""
    table = Table("step", "pass rate of the batch", "target's mean", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for step in sorted({round(part * (plan.steps - 1) / 4) for part in range(5)}):
        table.add_row(str(step), f"{plan.mean[step]:.2f} ± {plan.spread[step]:.2f}", f"{plan.target[step]:.2f}")
    return table
