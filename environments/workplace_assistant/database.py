"""The tables that an episode starts from: one read-only `Database` a process, ours or a folder of CSV files in the published form.

Ours is made by company.py. A folder holds email_addresses.csv (one address a line, no header), analytics_data.csv and one file per
table below, each with a header. A file that does not fit is an error that names file, line and column.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import orjson

from gym_servers.protocol import OmnigymError

TableName = Literal["emails", "events", "tasks", "customers"]
Record = dict[str, str | None]
"""One row by column. Only customers have columns that may be None."""

PUBLISHED_NOW = "2023-11-30 23:59:00"
"""The time at which the published tasks are asked, as their system prompt says."""


@dataclass(frozen=True)
class Form:
    """A table in the published form. key: the column that identifies a row. moments: columns that are a date or a time.
    optional: columns that may be empty, which then are None."""

    file: str
    columns: tuple[str, ...]
    moments: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.columns[0]


FORMS: dict[TableName, Form] = {
    "emails": Form(
        "emails.csv",
        ("email_id", "inbox/outbox", "sender/recipient", "subject", "sent_datetime", "body"),
        ("sent_datetime",),
    ),
    "events": Form(
        "calendar_events.csv",
        ("event_id", "event_name", "participant_email", "event_start", "duration"),
        ("event_start",),
    ),
    "tasks": Form(
        "project_tasks.csv",
        ("task_id", "task_name", "assigned_to_email", "list_name", "due_date", "board"),
        ("due_date",),
    ),
    "customers": Form(
        "customer_relationship_manager_data.csv",
        (
            "customer_id",
            "assigned_to_email",
            "customer_name",
            "customer_email",
            "customer_phone",
            "last_contact_date",
            "product_interest",
            "status",
            "follow_up_by",
            "notes",
        ),
        ("last_contact_date", "follow_up_by"),
        ("customer_email", "customer_phone", "last_contact_date", "product_interest", "follow_up_by"),
    ),
}
VISITS = Form(
    "analytics_data.csv",
    ("visitor_id", "date_of_visit", "page_views", "session_duration_seconds", "traffic_source", "user_engaged"),
    ("date_of_visit",),
)
ADDRESSES = "email_addresses.csv"


def moment(text: str | None) -> datetime | None:
    """The date or time that `text` says in ISO form, without a zone and from 1900 to 2999; None where it says none."""
    try:
        value = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return value if value.tzinfo is None and 1900 <= value.year < 3000 else None


def minutes(text: str | None) -> int | None:
    """A duration in whole minutes, up to 99,999; None where `text` is none."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,5}", text) else None


@dataclass(frozen=True)
class Visit:
    """One visit to the web site."""

    visitor_id: str
    day: date
    page_views: str
    seconds: int
    source: str
    engaged: bool

    def shown(self) -> dict[str, str | bool]:
        """As the tool answers it."""
        return {
            "date_of_visit": self.day.isoformat(),
            "visitor_id": self.visitor_id,
            "page_views": self.page_views,
            "session_duration_seconds": str(self.seconds),
            "traffic_source": self.source,
            "user_engaged": self.engaged,
        }


@dataclass(frozen=True, eq=False)
class Database:
    """source: what `load` was asked for. now: the time that new emails get. digest: of everything in it."""

    source: str
    now: str
    people: tuple[str, ...]
    tables: dict[TableName, dict[str, Record]]
    visits: tuple[Visit, ...]
    digest: str = field(init=False)
    _texts: dict[tuple[TableName, tuple[str, ...]], dict[str, str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        content = orjson.dumps([self.now, self.people, self.tables, [visit.shown() for visit in self.visits]])
        object.__setattr__(self, "digest", hashlib.blake2b(content, digest_size=12).hexdigest())

    def texts(self, table: TableName, columns: tuple[str, ...]) -> dict[str, str]:
        """What a search in `columns` looks at, by id."""
        found = self._texts.get((table, columns))
        if found is None:
            found = {key: searched(record, columns) for key, record in self.tables[table].items()}
            self._texts[table, columns] = found
        return found


def searched(record: Record, columns: Iterable[str]) -> str:
    """The text of some columns in lower case, one a line, so that no word reaches over two."""
    return "\n".join(record[column] or "" for column in columns).lower()


def _rows(folder: Path, form: Form) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:line", row) of a CSV. Raises OmnigymError."""
    path = folder / form.file
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [column for column in form.columns if column not in header]:
                raise OmnigymError(f"{path}: no column '{missing[0]}'; found {header}")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise OmnigymError(f"{where}: {len(cells)} cells, the header has {len(header)}")
                yield where, dict(zip(header, cells, strict=True))
    except OSError as error:
        raise OmnigymError(f"{path}: cannot be read ({error.strerror}): the folder needs this file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise OmnigymError(f"{path}: not a CSV file in UTF-8: {error}") from None


def _check(where: str, row: dict[str, str], form: Form) -> None:
    for column in form.columns:
        value = row[column]
        if column in form.optional and not value:
            continue
        if column in form.moments and moment(value) is None:
            raise OmnigymError(f"{where}: column '{column}' must be a date YYYY-MM-DD or a time, found '{value[:40]}'")
        if column in (form.key, "sender/recipient", "participant_email", "assigned_to_email") and not value:
            raise OmnigymError(f"{where}: column '{column}' is empty")
    if "duration" in form.columns and minutes(row["duration"]) is None:
        raise OmnigymError(f"{where}: column 'duration' must be a number of minutes, found '{row['duration'][:40]}'")


def _table(folder: Path, form: Form) -> dict[str, Record]:
    table: dict[str, Record] = {}
    for where, row in _rows(folder, form):
        _check(where, row, form)
        key = row[form.key]
        if not re.fullmatch(r"[0-9]{1,12}", key):
            raise OmnigymError(f"{where}: column '{form.key}' must be a number, found '{key[:40]}'")
        if key in table:
            raise OmnigymError(f"{where}: column '{form.key}': '{key}' stands there twice")
        table[key] = {
            column: None if column in form.optional and not row[column] else row[column] for column in form.columns
        }
    return table


def _visit(where: str, row: dict[str, str]) -> Visit:
    _check(where, row, VISITS)
    seconds, day = minutes(row["session_duration_seconds"]), moment(row["date_of_visit"])
    if seconds is None or day is None:
        raise OmnigymError(f"{where}: column 'session_duration_seconds' must be a whole number")
    if row["user_engaged"] not in ("True", "False"):
        raise OmnigymError(f"{where}: column 'user_engaged' must be True or False, found '{row['user_engaged'][:40]}'")
    engaged = row["user_engaged"] == "True"
    return Visit(row["visitor_id"], day.date(), row["page_views"], seconds, row["traffic_source"], engaged)


def _addresses(folder: Path) -> tuple[str, ...]:
    path = folder / ADDRESSES
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise OmnigymError(f"{path}: cannot be read ({error.strerror}): the folder needs this file") from None
    except UnicodeDecodeError as error:
        raise OmnigymError(f"{path}: not a text in UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if line and "@" not in line:
            raise OmnigymError(f"{path}:{number}: must be an email address, found '{line[:40]}'")
    return tuple(filter(None, lines))


def read_folder(folder: Path) -> Database:
    """The database in a folder of CSVs. Raises OmnigymError that names file, line and column."""
    if not folder.is_dir():
        raise OmnigymError(
            f"environment 'workplace_assistant': setting 'database': no folder '{folder}'; empty for our own data"
        )
    tables = {name: _table(folder, form) for name, form in FORMS.items()}
    visits = tuple(_visit(where, row) for where, row in _rows(folder, VISITS))
    return Database(str(folder), PUBLISHED_NOW, _addresses(folder), tables, visits)


@cache
def load(source: str) -> Database:
    """The database of a setting `database`: "" is our own company. Read once a process."""
    if source:
        return read_folder(Path(source))
    from environments.workplace_assistant.company import company

    return company()
