"""The environment `workplace_assistant`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from environments.workplace_assistant import generator, probes
from environments.workplace_assistant.database import load
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.toolset import TOOLS
from environments.workplace_assistant.verifier import WorkplaceRow, opened, replayed, verdict
from gym_servers.environment import Row, Settings, Split, StatefulEnvironment
from gym_servers.protocol import Item, OmnigymError, Verdict
from gym_servers.tools import Tool


class WorkplaceSettings(Settings):
    """Settings of this environment."""

    database: str = ""
    """Folder of CSV files in the published form, which must stay as they are; "" for our own company."""


class WorkplaceAssistant(StatefulEnvironment):
    """Email, calendar, analytics, project management and customers of a company, by tools."""

    name = "workplace_assistant"
    settings_type: ClassVar[type[Settings]] = WorkplaceSettings
    row_type: ClassVar[type[Row]] = WorkplaceRow
    max_steps = 6

    def tools(self) -> Sequence[Tool]:
        return list(TOOLS.values())

    async def open(self) -> None:
        """Read the database: a folder that does not fit is an error of the start, not of each request."""
        load(self.settings.database)

    def prepare(self) -> None:
        load(self.settings.database)

    def seed(self, row: Row) -> Workplace:
        return opened(row, load(self.settings.database))

    def verify_state(self, row: Row, output: list[Item], state: Any) -> Verdict:
        """On the session's state, else on the one that the calls of `output` lead to."""
        assert isinstance(row, WorkplaceRow)
        if state is None:
            state = replayed(row, output, load(self.settings.database), self.settings.max_answer_chars)
        assert isinstance(state, Workplace)
        return verdict(row, state)

    def gold(self, row: Row) -> list[Item]:
        """The ground truth's calls with what the tools answer."""
        assert isinstance(row, WorkplaceRow)
        return probes.gold(row, load(self.settings.database))

    def probes(self, row: Row) -> dict[str, list[Item]]:
        assert isinstance(row, WorkplaceRow)
        return probes.probes(row, load(self.settings.database))

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        if self.settings.database:
            raise OmnigymError(
                "environment 'workplace_assistant': tasks are generated for our own company: no 'database'"
            )
        return generator.generate(n, seed, split)
