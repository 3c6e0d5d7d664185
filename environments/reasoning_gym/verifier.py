"""From a text to a score in [0, 1]: which part of it is the answer, and how near that is to the entry's.

What compares texts is bounded and linear. `package_score` runs the package's scorer, for a worker only.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import math
import re
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from environments.competition_math.extraction import search_boxed
from environments.reasoning_gym.datasets import BOARDS, EXACT, PLAIN, VERSION
from gym_servers.protocol import OmnigymError, RowError

INSTALL = f"pip install 'omnigym[reasoning-gym]' (reasoning-gym=={VERSION})"
MAX_NUMBER_CHARS = 400
_HUGE = re.compile(r"[0-9.][eE][+-]?[0-9]{4,}")
_AND = re.compile(r", and |, | and ")
Entry = dict[str, Any]
"""question, answer and metadata, as the package makes them."""


def extract(text: str) -> str:
    """Between the last `<answer>` and `</answer>`; else the last box; else all of it."""
    found, position = None, 0
    while (start := text.find("<answer>", position)) >= 0 and (end := text.find("</answer>", start)) >= 0:
        found, position = text[start + 8 : end], end + 9
    if found is None and "\\boxed{" in text:
        found = search_boxed(text)
    return (text if found is None else found).strip()


def _lines(board: str) -> list[str]:
    return [" ".join(line.split()) for line in board.strip().splitlines()]


def _numbers(text: str) -> list[float] | None:
    """The numbers of a list like `['1.5', "-2", 3]`; None where it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = [float(part.strip().strip("'\"")[:MAX_NUMBER_CHARS]) for part in text[1:-1].split(",")]
    except ValueError:
        return None
    return found if all(math.isfinite(number) for number in found) else None


def _whole(text: str) -> int | None:
    try:
        return int(text.strip(), 0) if len(text) <= MAX_NUMBER_CHARS else None
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").strip(" $.")[:MAX_NUMBER_CHARS])
    except ValueError:
        return None


def _clauses(text: str) -> list[str]:
    """The clauses of `A is a knight, and B is a knave.`, sorted."""
    return sorted(clause.strip() for clause in _AND.split(text.strip().rstrip(".").lower()))


def _same(name: str, answer: str, entry: Entry) -> bool:
    """Whether `answer` is what dataset `name` of EXACT asks for."""
    expected = entry["answer"]
    if name == "bitwise_arithmetic":
        return _whole(answer) is not None and _whole(answer) == _whole(expected)
    if name == "number_sorting":
        return _numbers(answer) is not None and _numbers(answer) == _numbers(expected)
    if name == "gsm_symbolic":
        return _number(answer) is not None and _number(answer) == _number(expected)
    if name == "knights_knaves":
        return _clauses(answer) == _clauses(expected)
    if name == "game_of_life":
        return "".join(answer.split()) == "".join(expected.split())
    assert name in BOARDS
    valid = entry["metadata"].get("valid_answers") if name == "n_queens" else None
    boards = [*valid, expected] if isinstance(valid, list) else [expected]
    return any(isinstance(board, str) and _lines(answer) == _lines(board) for board in boards)


def text_score(name: str, answer: str, entry: Entry) -> float | None:
    """The score that comparing texts gives; None where only the package's scorer can tell."""
    expected = entry["answer"]
    if not answer:
        return 0.0
    if answer == expected:
        return 1.0
    if name in EXACT:
        return float(expected is not None and _same(name, answer, entry))
    if name in PLAIN:
        return len(expected) / len(answer) if expected is not None and expected in answer else 0.0
    if "nan" in answer.lower() and "nan" not in (expected or "").lower():
        return 0.0  # a comparison with "not a number" passes for the best one in the package
    if _HUGE.search(answer):
        return 0.0  # written out, such a number takes minutes
    return None


def package() -> ModuleType:
    """The package reasoning-gym. Raises OmnigymError that says how to install it."""
    try:
        found = importlib.metadata.version("reasoning-gym")
        factory = importlib.import_module("reasoning_gym.factory")
        importlib.import_module("reasoning_gym")
    except (importlib.metadata.PackageNotFoundError, ImportError) as error:
        raise OmnigymError(
            f"environment 'reasoning_gym' needs a package that is not there ({error}): {INSTALL}"
        ) from None
    if found != VERSION:
        raise OmnigymError(
            f"environment 'reasoning_gym': scorers were read at {VERSION}, installed is {found}: {INSTALL}"
        )
    return factory


@cache
def _scorer(name: str) -> Callable[[str, Entry], float]:
    return package().get_score_answer_fn(name)  # type: ignore[no-any-return]


def package_score(name: str, answer: str, entry: Entry) -> tuple[float, str]:
    """(score, why) by the package's scorer. Raises RowError where the entry is none of its own; OmnigymError without the package.

    A scorer that cannot read an answer raises anything: that is the answer's fault if it accepts the expected one. A score past 1 is a
    bug of a scorer, and earns nothing.
    """
    scorer = _scorer(name)
    try:
        score = float(scorer(answer, copy.deepcopy(entry)))
    except Exception as error:
        if entry["answer"] is not None:
            try:
                accepted = float(scorer(entry["answer"], copy.deepcopy(entry))) > 0.0
            except Exception as broken:
                raise RowError(
                    f"field 'metadata': no task of dataset '{name}': {type(broken).__name__}: {broken}"
                ) from None
            if accepted:
                return 0.0, f"its scorer cannot read it ({type(error).__name__})"
        raise
    if not math.isfinite(score) or score > 1.0 + 1e-6:
        return 0.0, f"its scorer's value {score:g} is no score"
    return min(1.0, max(0.0, score)), "the package's scorer"
