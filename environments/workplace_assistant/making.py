"""What the makers of tasks share: the part of our company that a split may use, and words that only it may use."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

from environments.workplace_assistant.company import PEOPLE, address
from environments.workplace_assistant.database import Database, Record, TableName, load
from gym_servers.environment import Split

Call = tuple[str, dict[str, str]]

SUBJECTS: dict[Split, tuple[str, ...]] = {
    "train": ("Lunch on Friday", "New office keys", "Travel costs", "Parking spaces", "Summer party", "Printer repair"),
    "heldout": ("Desk move", "Fire drill", "Holiday list", "Coffee machine"),
}
TEXTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "Please let me know by noon.",
        "Thanks, I will look at it tomorrow.",
        "Sounds good to me.",
        "I need two more days for this.",
        "Can we talk about it on Monday?",
        "All done, nothing left to do.",
    ),
    "heldout": (
        "Please wait for my answer.",
        "I agree with the plan.",
        "Let us skip it this time.",
        "Call me when you can.",
    ),
}
EVENT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("Kick-off", "Team breakfast", "Sales review", "Training day", "Code walk", "Price talk", "Risk review"),
    "heldout": ("Town hall", "Photo session", "Data audit", "Farewell"),
}
TASK_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("Update the footer", "Clean the cache", "Draft the banner", "Check the backups", "Rename the menu"),
    "heldout": ("Merge the forms", "Shrink the logo", "Rotate the keys"),
}
CLIENTS: dict[Split, tuple[str, ...]] = {
    "train": ("Marlow Finch", "Paige Turner", "Quincy Adler", "Rosa Lindt", "Silas Monk", "Tess Hardy", "Vera Stone"),
    "heldout": ("Wanda Reed", "Xavier Bloom", "Yves Carter"),
}
POLITE = ("", "Please ", "Can you please ", "Could you ", "I need you to ", "Robin here. Please ")

COLUMN: dict[TableName, str] = {
    "emails": "sender/recipient",
    "events": "participant_email",
    "tasks": "assigned_to_email",
    "customers": "assigned_to_email",
}


@dataclass(frozen=True)
class Task:
    """A request, the calls that it asks for, and the names of the tools by which one finds out what to call."""

    area: str
    request: str
    calls: list[Call]
    lookups: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Turns of an agent that makes one call a turn."""
        return len(self.calls) + len(self.lookups)


@cache
def _records(split: Split, table: TableName) -> tuple[Record, ...]:
    people = {address(person) for person in PEOPLE[split]}
    return tuple(record for record in load("").tables[table].values() if record[COLUMN[table]] in people)


def _filled(record: Record) -> dict[str, str]:
    return {key: value or "" for key, value in record.items()}


@dataclass(frozen=True)
class World:
    """Draws for one task of a split."""

    r: random.Random
    split: Split

    @property
    def base(self) -> Database:
        return load("")

    @property
    def now(self) -> datetime:
        return datetime.fromisoformat(self.base.now)

    def records(self, table: TableName, **columns: str) -> list[dict[str, str]]:
        """The split's records with these values, empty columns as ""."""
        found = (r for r in _records(self.split, table) if all(r[key] == value for key, value in columns.items()))
        return [_filled(record) for record in found]

    def one(self, table: TableName) -> dict[str, str]:
        """Any record of the split."""
        return _filled(self.r.choice(_records(self.split, table)))

    def person(self, but: str = "") -> str:
        """Any colleague of the split, by full name, whose address is not `but`."""
        return self.r.choice([person for person in PEOPLE[self.split] if address(person) != but])

    def of(self, words: dict[Split, tuple[str, ...]]) -> str:
        """One of the split's words."""
        return self.r.choice(words[self.split])

    def say(self, *templates: str, **values: Any) -> str:
        """One of the templates, filled; one that starts in lower case is more or less politely asked for."""
        template = self.r.choice(templates)
        text = (self.r.choice(POLITE) if template[0].islower() else "") + template.format(**values)
        return f"{text[0].upper()}{text[1:]}"

    def day(self, first: int, last: int) -> date:
        """A day that many days after the present one, of those that only this split uses, Monday to Friday."""
        while True:
            day = self.now.date() + timedelta(days=self.r.randint(first, last))
            if day.weekday() < 5 and (day.toordinal() % 5 == 0) == (self.split == "heldout"):
                return day

    def start(self) -> str:
        """A half hour from 9:00 to 16:00 in the next four weeks."""
        minutes = 540 + 30 * self.r.randrange(15)
        return f"{self.day(1, 28)} {minutes // 60:02}:{minutes % 60:02}:00"

    def other(self, values: tuple[str, ...], but: str) -> str:
        """One of `values` that is not `but`."""
        return self.r.choice([value for value in values if value != but])


def first_name(mail: str) -> str:
    """Of a colleague by address."""
    return mail.partition(".")[0].capitalize()


def full_name(mail: str) -> str:
    """Of a colleague by address."""
    return " ".join(part.capitalize() for part in mail.partition("@")[0].split("."))
