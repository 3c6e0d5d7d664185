"""What tests may need from outside: absent, it is a skip with its reason, or a failure where OMNIGYM_REQUIRE names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CONFORMANCE = Path(__file__).resolve().parents[1].parent / "shared" / "conformance"


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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked conformance needs the folder, whichever way it reads it."""
    if item.get_closest_marker("conformance"):
        need("conformance", CONFORMANCE.is_dir(), f"no conformance cases at {CONFORMANCE}: a user's checkout has none")
