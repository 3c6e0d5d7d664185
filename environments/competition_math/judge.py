"""The optional judge of a "no": a model that is asked, in both orders, whether two answers are the same (judge.yaml).

It can only turn a "no" into a "yes", and only where both orders say equal. A label counts on a line of its own, the last one.
A judge that cannot be reached, or that gives no label twice, is a failure: never "not equal".
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from gym_servers.judges import ModelClient, Prompt, quoted

_LABEL = re.compile(r"^[ \t*`]*\[\[A(!?)=B\]\][ \t*`.]*$", re.MULTILINE)
MARKER = "<|"
"""Opens every marker of the prompt: an answer that holds it could pretend to be more than an answer."""


def label(reply: str) -> bool | None:
    """Whether the last label of `reply` that has a line of its own says equal; None where there is none."""
    found = _LABEL.findall(reply)
    return found[-1] == "" if found else None


@cache
def _prompt() -> Prompt:
    fields = ("question", "first", "second")
    return Prompt(Path(__file__).parent / "judge.yaml", fields, fields)


async def says_equal(judge: ModelClient, question: str, expected: str, given: str) -> tuple[bool, list[str]]:
    """(whether both orders say equal, the judge's replies). The second order is asked only after a "yes" to the first.
    Raises FailureError of kind judge_failed."""
    replies: list[str] = []
    for first, second in ((expected, given), (given, expected)):
        equal, reply = await judge.ask(
            _prompt().messages({"question": quoted(question), "first": quoted(first), "second": quoted(second)}), label
        )
        replies.append(reply)
        if not equal:
            return False, replies
    return True, replies
