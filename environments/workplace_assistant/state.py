"""The state of an episode: what has changed since the start, over a `Database` that all episodes of a process share.

A copy of it (a pickle) holds the changes and the name and digest of the database, never the database. Where a process finds another
database under that name, it refuses the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from environments.workplace_assistant.database import FORMS, Database, Record, TableName, load, searched
from gym_servers.protocol import OmnigymError
from gym_servers.tools import ToolRefused

MAX_QUERY = 200
"""Characters of a search's text: each of its words is looked for in every record."""
MAX_MADE = 200
"""Records and plots that an episode may make, so that no session grows without end."""


class Workplace:
    """changes: by table, records that are new or differ by id, None for those deleted. made: how many were ever made, so that no
    id is given twice. plots: files of plots in the order they were made. offered: names of the tools that may be called, None for
    all of them."""

    __slots__ = ("base", "changes", "made", "offered", "plots")

    def __init__(self, base: Database, offered: list[str] | None = None) -> None:
        self.base, self.offered = base, offered
        self.changes: dict[TableName, dict[str, Record | None]] = {}
        self.made: dict[TableName, int] = {}
        self.plots: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {
            "database": [self.base.source, self.base.digest],
            "changes": self.changes,
            "made": self.made,
            "plots": self.plots,
            "offered": self.offered,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        source, digest = state["database"]
        self.base = load(source)
        if self.base.digest != digest:
            raise OmnigymError(
                f"environment 'workplace_assistant': the database '{source or 'ours'}' is not the one that the session "
                f"started from ({self.base.digest}, then {digest}): its processes must read the same files"
            )
        self.changes, self.made, self.plots = state["changes"], state["made"], state["plots"]
        self.offered = state["offered"]

    def check_offered(self, name: str) -> None:
        """Raises ToolRefused where the task does not offer tool `name`: an agent other than ours may call any path of the server."""
        if self.offered is not None and name not in self.offered:
            raise ToolRefused(f"there is no tool '{name}' for this task. Tools: {', '.join(self.offered) or 'none'}")

    def get(self, table: TableName, key: str) -> Record | None:
        """The record, to be read only; None where there is none."""
        changes = self.changes.get(table, {})
        return changes[key] if key in changes else self.base.tables[table].get(key)

    def records(self, table: TableName) -> Iterator[tuple[str, Record]]:
        """(id, record) in the order of the database, what was made last."""
        base, changes = self.base.tables[table], self.changes.get(table, {})
        for key, record in base.items():
            found = changes.get(key, record)
            if found is not None:
                yield key, found
        for key, changed in changes.items():
            if key not in base and changed is not None:
                yield key, changed

    def search(
        self,
        table: TableName,
        query: str,
        columns: tuple[str, ...],
        keep: Callable[[Record], bool] = lambda record: True,
    ) -> list[Record]:
        """Records in which every word of `query` stands somewhere in `columns`, whatever the case, and that `keep` takes."""
        texts, changes = self.base.texts(table, columns), self.changes.get(table, {})
        words = set(query.lower().split())
        found = []
        for key, record in self.records(table):
            text = searched(record, columns) if key in changes else texts[key]
            if all(word in text for word in words) and keep(record):
                found.append(record)
        return found

    def room(self) -> None:
        """Raises ToolRefused where no more can be made."""
        if sum(self.made.values()) + len(self.plots) >= MAX_MADE:
            raise ToolRefused(f"{MAX_MADE} records and plots were made already, no more fit")

    def make(self, table: TableName, record: Record, pad: bool = True) -> str:
        """Add a record; its id, one more than any there has been. Raises ToolRefused where no more can be made."""
        self.room()
        base = self.base.tables[table]
        made = self.made.get(table, 0)
        self.made[table] = made + 1
        number = str(max(map(int, base), default=-1) + 1 + made)
        key = number.zfill(8) if pad else number
        self.changes.setdefault(table, {})[key] = {FORMS[table].key: key, **record}
        return key

    def update(self, table: TableName, key: str, column: str, value: str) -> bool:
        """Set one column; whether there is such a record."""
        record = self.get(table, key)
        if record is None:
            return False
        self.changes.setdefault(table, {})[key] = {**record, column: value}
        return True

    def delete(self, table: TableName, key: str) -> bool:
        """Remove a record; whether there was one."""
        if self.get(table, key) is None:
            return False
        changes = self.changes.setdefault(table, {})
        if key in self.base.tables[table]:
            changes[key] = None
        else:
            del changes[key]
        return True
