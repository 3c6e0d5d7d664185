"""Our own company: a seeded database of about the size of the published one, the same in every process.

Each record of email, calendar, tasks and customers has one colleague; those of `PEOPLE["train"]` and of `PEOPLE["heldout"]` are two
groups, so that tasks about the one say nothing of the other.
"""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta

from environments.workplace_assistant.customers import PRODUCTS, STATUSES
from environments.workplace_assistant.database import Database, Record, TableName, Visit
from environments.workplace_assistant.projects import BOARDS, LISTS
from gym_servers.environment import Split

NOW = datetime(2025, 4, 10, 17, 30)
"""A Thursday."""
DOMAIN = "larkspur.com"
PEOPLE: dict[Split, tuple[str, ...]] = {
    "train": (
        "Alma Brandt",
        "Bruno Keller",
        "Celia Novak",
        "Dario Fontana",
        "Edith Larsen",
        "Farid Haddad",
        "Greta Holm",
        "Hugo Marchand",
        "Irene Castell",
        "Jamal Osei",
        "Kaori Mori",
        "Lukas Vogel",
        "Mina Farahani",
        "Noel Dufour",
        "Oksana Bondar",
    ),
    "heldout": ("Pavel Hruska", "Renata Silva", "Stellan Berg", "Tamsin Wright", "Umar Siddiqui"),
}
FIRST = (
    "Avery",
    "Blake",
    "Carmen",
    "Devon",
    "Elliot",
    "Frances",
    "Gale",
    "Harper",
    "Indira",
    "Jules",
    "Kendall",
    "Logan",
)
LAST = (
    *("Abbott", "Barlow", "Crane", "Dalton", "Ellery", "Foss", "Garner", "Hale", "Irving", "Jarvis"),
    *("Keating", "Lowell", "Mercer", "Nash", "Oakley", "Pryor", "Quill", "Rowan", "Sutter", "Thorne"),
)
FIRMS = ("brightmill", "cobaltworks", "deltafarm", "evergrid", "foundrylane", "glasshill", "harborline", "ironbirch")
EVENTS = (
    *("Weekly planning", "Design critique", "Budget check", "Release review", "Hiring round", "Customer call"),
    *("Roadmap talk", "Security drill", "Quarter wrap-up", "Onboarding session", "Supplier visit", "Press briefing"),
)
WORK = {
    "Back end": ("Speed up the", "Add logging to the", "Write tests for the", "Split up the"),
    "Front end": ("Restyle the", "Fix the layout of the", "Translate the", "Add a shortcut to the"),
    "Design": ("Sketch the", "Pick colours for the", "Review icons of the", "Draw a mock-up of the"),
}
PARTS = (
    "login page",
    "invoice export",
    "search box",
    "price list",
    "order form",
    "help centre",
    "chat window",
    "profile menu",
)
OPENINGS = ("Hello Robin,", "Hi Robin,", "Good morning Robin,", "Robin,")
NEWS = (
    "the first half is done and the rest should follow by Friday.",
    "I would like your opinion before I go on.",
    "we have found two problems that need a decision.",
    "everything is ready from my side.",
    "I am still waiting for figures from the warehouse.",
    "could we move it a few days? My week is very full.",
)
SUBJECTS = ("Progress on {}", "Question about {}", "Notes on {}", "Plan for {}")
CONTACTS = ("asked for a quote", "wants to see a demo", "was away", "liked the trial", "met us at the fair")


def address(person: str) -> str:
    """The email address of a colleague."""
    return f"{person.lower().replace(' ', '.')}@{DOMAIN}"


def _ids(r: random.Random, count: int) -> list[str]:
    ids = [f"{number:08}" for number in range(count)]
    r.shuffle(ids)
    return ids


def _working_hour(r: random.Random, first: date, days: int) -> datetime:
    """A half hour from 9:00 to 16:00 of a Monday to Friday."""
    while True:
        day = first + timedelta(days=r.randrange(days))
        if day.weekday() < 5:
            return datetime(day.year, day.month, day.day) + timedelta(minutes=540 + 30 * r.randrange(15))


def _table(key: str, ids: list[str], rows: list[Record]) -> dict[str, Record]:
    return {name: {key: name, **row} for name, row in zip(ids, rows, strict=True)}


def _emails(r: random.Random, people: list[str]) -> dict[str, Record]:
    rows: list[Record] = []
    times = sorted(NOW - timedelta(seconds=r.randrange(60, 59 * 86400)) for _ in range(500))
    for time in times:
        person = r.choice(people)
        topic = r.choice([r.choice(EVENTS), f"the {r.choice(PARTS)}"])
        sign = f"Regards,\n{person.split()[0]}"
        rows.append(
            {
                "inbox/outbox": "inbox",
                "sender/recipient": address(person),
                "subject": r.choice(SUBJECTS).format(topic),
                "sent_datetime": time.strftime("%Y-%m-%d %H:%M:%S"),
                "body": f"{r.choice(OPENINGS)}\n\nabout {topic}: {r.choice(NEWS)}\n\n{sign}",
            }
        )
    return _table("email_id", _ids(r, len(rows)), rows)


def _events(r: random.Random, people: list[str]) -> dict[str, Record]:
    starts = sorted(_working_hour(r, date(2025, 2, 3), 96) for _ in range(300))
    rows: list[Record] = [
        {
            "event_name": r.choice(EVENTS),
            "participant_email": address(r.choice(people)),
            "event_start": start.strftime("%Y-%m-%d %H:%M:%S"),
            "duration": str(r.choice([30, 60, 90, 120])),
        }
        for start in starts
    ]
    return _table("event_id", _ids(r, len(rows)), rows)


def _tasks(r: random.Random, people: list[str]) -> dict[str, Record]:
    due = sorted(date(2025, 4, 7) + timedelta(days=r.randrange(28)) for _ in range(300))
    rows: list[Record] = []
    for day in due:
        board = r.choice(BOARDS)
        rows.append(
            {
                "task_name": f"{r.choice(WORK[board])} {r.choice(PARTS)}",
                "assigned_to_email": address(r.choice(people)),
                "list_name": r.choice([*LISTS, "Backlog"]),
                "due_date": day.isoformat(),
                "board": board,
            }
        )
    return _table("task_id", _ids(r, len(rows)), rows)


def _customers(r: random.Random, people: list[str]) -> dict[str, Record]:
    names = r.sample([f"{first} {last}" for first in FIRST for last in LAST], 200)
    contacts = sorted((date(2025, 4, 10) - timedelta(days=r.randrange(40)) for _ in names), reverse=True)
    rows: list[Record] = []
    for name, contact in zip(names, contacts, strict=True):
        notes = [f"{contact - timedelta(days=r.randrange(30))}: {r.choice(CONTACTS)}." for _ in range(r.randrange(3))]
        rows.append(
            {
                "assigned_to_email": address(r.choice(people)),
                "customer_name": name,
                "customer_email": f"{name.lower().replace(' ', '.')}@{r.choice(FIRMS)}.com",
                "customer_phone": f"555-01{r.randrange(100):02}" if r.random() < 0.5 else None,
                "last_contact_date": contact.isoformat(),
                "product_interest": r.choice(PRODUCTS),
                "status": r.choice(STATUSES),
                "follow_up_by": (date(2025, 4, 11) + timedelta(days=r.randrange(30))).isoformat(),
                "notes": " ".join(notes),
            }
        )
    return _table("customer_id", _ids(r, len(rows)), rows)


def _visits(r: random.Random) -> tuple[Visit, ...]:
    visits = []
    for _ in range(1000):
        day = date(2025, 1, 20) + timedelta(days=r.randrange(81))
        source = r.choice(["direct", "referral", "search engine", "social media"])
        pages = str(r.randint(1, 15))
        visits.append(Visit(f"{r.randrange(10000):04}", day, pages, r.randint(1, 40), source, r.random() < 0.4))
    return tuple(visits)


def company() -> Database:
    """The database, made anew."""
    people = sorted(PEOPLE["train"] + PEOPLE["heldout"])
    tables: dict[TableName, dict[str, Record]] = {
        "emails": _emails(random.Random("emails"), people),
        "events": _events(random.Random("events"), people),
        "tasks": _tasks(random.Random("tasks"), people),
        "customers": _customers(random.Random("customers"), people),
    }
    addresses = tuple(address(person) for person in people)
    return Database("", NOW.strftime("%Y-%m-%d %H:%M:%S"), addresses, tables, _visits(random.Random("visits")))
