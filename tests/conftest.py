"""What tests may need from outside: absent, it is a skip with its reason, or a failure where OMNIGYM_REQUIRE names it.

OMNIGYM_REQUIRE is comma-separated: conformance (the cases beside the checkout), model (the small real model), vllm, root (with leave
to mount a tmpfs), reasoning_gym (the package: `make reasoning-gym`), redis (`redis-server`), docker (an engine, or
root and `dockerd`).

Conformance tests report through the fixture `conform`; a table of them, file by file, ends the run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

CONFORMANCE = Path(__file__).resolve().parents[1].parent / "shared" / "conformance"
PACKAGES = Path(__file__).resolve().parents[1]

# A busy machine is no failure, nor a bug that was noticed.
settings.register_profile("omnigym", deadline=None)
settings.load_profile("omnigym")


def need(what: str, present: bool, reason: str) -> None:
    """Skip the test, or fail it where OMNIGYM_REQUIRE (comma-separated) names `what`, unless `present`."""
    if present:
        return
    if what in os.environ.get("OMNIGYM_REQUIRE", "").split(","):
        pytest.fail(f"OMNIGYM_REQUIRE names '{what}': {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of conformance cases beside the checkout."""
    need("conformance", CONFORMANCE.is_dir(), f"no conformance cases at {CONFORMANCE}: a user's checkout has none")
    return CONFORMANCE


def has_reasoning_gym() -> bool:
    """Whether the package is installed: its metadata tells, since a test folder of its name can be imported too."""
    try:
        return bool(version("reasoning-gym"))
    except PackageNotFoundError:
        return False


def need_reasoning_gym() -> None:
    """The optional package."""
    need("reasoning_gym", has_reasoning_gym(), "the package reasoning-gym is not installed: make reasoning-gym")


@pytest.fixture
def reasoning_gym_package() -> None:
    """The optional package."""
    need_reasoning_gym()


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[None]:
    """A Docker engine, one for all tests."""
    from compose_stack import engine

    with engine():
        yield


@pytest.fixture(scope="session")
def environments_image(docker_engine: None) -> Iterator[str]:
    """The image of this checkout, which OMNIGYM_IMAGE names meanwhile."""
    from compose_stack import base_image, built_image

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIGYM_IMAGE", image := built_image(base_image("python", "BASE_IMAGE")))
        yield image


class Agreement(NamedTuple):
    """How many cases of a file there are, and the ids of those where we disagree, with or without a reason in a document."""

    cases: int
    listed: list[str]
    unlisted: list[str]


AGREEMENTS: dict[str, Agreement] = {}


def listed_in(document: Path) -> set[str]:
    """Ids in the first column of the table below "## Disagreements with the reference", rows with an empty reason left out."""
    _, _, section = document.read_text().partition("## Disagreements with the reference")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.split("\n## ")[0].splitlines()]
    return {row[0] for row in rows if len(row) >= 4 and re.fullmatch(r"[\w/-]+\d", row[0]) and len(row[-1]) > 10}


def agrees(line: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """The same reward, and where the reference tells them, the same instructions followed strictly and loosely."""
    if line.get("reward") != expected["reward"]:
        return False
    parts = line["parts"]
    strict = expected.get("strict") or expected.get("follow_instruction_list")
    loose = expected.get("loose") or expected.get("follow_instruction_list_loose")
    return strict in (None, parts.get("follow_instruction_list")) and loose in (
        None,
        parts.get("follow_instruction_list_loose"),
    )


@pytest.fixture
def conform() -> Callable[[str, Mapping[str, bool], str], None]:
    """`conform(file, {case id: whether we agree}, document)`: fails on a disagreement that `document` (a path in the checkout)
    does not list with its reason, and on one listed that no longer is."""

    def check(file: str, agrees: Mapping[str, bool], document: str) -> None:
        wrong = [name for name, agreed in agrees.items() if not agreed]
        listed = listed_in(PACKAGES / document)
        unlisted = [name for name in wrong if name not in listed]
        AGREEMENTS[file] = Agreement(len(agrees), [name for name in wrong if name in listed], unlisted)
        assert agrees, f"{file}: no cases"
        assert not unlisted, f"{file}: disagreements that {document} does not list with a reason: {unlisted}"
        stale = sorted(listed & {name for name, agreed in agrees.items() if agreed})
        assert not stale, f"{document} lists disagreements that are none: {stale}"

    return check


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked conformance needs the folder, whichever way it reads it; one of reasoning_gym's tasks, the package."""
    if "reasoning_gym" in getattr(getattr(item, "callspec", None), "params", {}).values():
        need_reasoning_gym()
    if item.get_closest_marker("conformance"):
        need("conformance", CONFORMANCE.is_dir(), f"no conformance cases at {CONFORMANCE}: a user's checkout has none")


def _lines(agreements: Mapping[str, Agreement], files: Iterable[str]) -> Iterable[str]:
    yield f"{'file':<44}{'cases':>6}{'agree':>7}  disagree"
    for name, (cases, listed, unlisted) in sorted(agreements.items()):
        agree = cases - len(listed) - len(unlisted)
        shown = ", ".join([*(f"{case} (listed)" for case in listed), *(f"{case} NOT LISTED" for case in unlisted)])
        yield f"{name:<44}{cases:>6}{agree:>7}  {shown}"
    if unread := sorted(set(files) - set(agreements)):
        yield f"read by no test of this run: {', '.join(unread)}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of conformance files, where a run has read any."""
    if not AGREEMENTS:
        return
    terminalreporter.section("conformance")
    files = [str(path.relative_to(CONFORMANCE)) for path in CONFORMANCE.rglob("*.jsonl")]
    for line in _lines(AGREEMENTS, files):
        terminalreporter.write_line(line)
