"""Seeded reports about places, and questions that need at least five of them; the others distract. Gold answers are exact.

A question is answered by one number, name or date that is computed from the reports it needs (`needs`: their numbers): leave one of them out
and the answer is open. Prompts grow with the difficulty from a few hundred tokens to the budget. Tokens are estimated at 1.4 to a word.
Places are of train or of held-out by a hash of their name.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

from environments.open_qa.generator import CAPITALS, COLOURS, NAMES

TOKENS_PER_WORD = 1.4
SHORTEST = 400
"""Tokens of the shortest prompts."""
NEEDED = 5
KINDS = (
    "Museum Library Clinic School Bakery Theatre Factory Station Hotel Market Garden Archive Laboratory Harbour Mill Foundry "
    "Brewery Academy Gallery Observatory"
).split()  # fmt: skip
SURNAMES = (
    "Abara Berg Castro Dahl Eriksen Fuchs Garcia Haddad Ibsen Jansen Kato Lopez Moreau Novak Okafor Petrov Quist Rossi "
    "Silva Tanaka Unger Varga Weber Xu Yilmaz Zeman"
).split()  # fmt: skip
FILLER = (
    "The roof was repaired in {year} after a storm.",
    "A local newspaper once called it the pride of the quarter.",
    "Tram line {small} stops in front of the main door.",
    "In summer the courtyard is open until late in the evening.",
    "The walls of the entrance hall are painted {colour}.",
    "A survey in {year} found {number} complaints about the noise of the heating.",
    "Guided walks begin at the fountain every {small} minutes past the hour.",
    "The neighbours still remember the flood of {year}.",
    "The old lift carries at most {small} persons at a time.",
    "Its founder, {person}, never saw the finished building.",
    "The coffee of the small kiosk outside is known in the whole town.",
    "A plan to move to another street was given up in {year}.",
    "There are {number} lamps in the corridors, and half of them are new.",
    "School classes come on weekdays, mostly in the morning.",
    "The accounts are audited by an office in another town.",
    "A plaque beside the stairs thanks {person} for a gift of {number} books.",
)


@dataclass
class Place:
    """What the reports say of one place. staff: persons. opened: day. head: who leads it."""

    name: str
    staff: int
    opened: date
    head: str
    budget: int
    notes: list[str]


Made = tuple[str, str, list[str]]
"""question, answer, names of the places whose reports it needs"""


def words(text: str) -> int:
    """Words of `text`."""
    return len(text.split())


def tokens(text: str) -> int:
    """Tokens of `text`, estimated."""
    return round(words(text) * TOKENS_PER_WORD)


def place_names(split: str) -> list[str]:
    """All places of the split: about 570 of train, 190 held out."""

    def held(name: str) -> bool:
        return hashlib.sha256(f"long_context_qa|{name}".encode()).digest()[0] < 64

    names = [f"{city} {kind}" for city in CAPITALS.values() for kind in KINDS]
    return [name for name in names if held(name) == (split == "heldout")]


def _written(when: date, r: random.Random) -> str:
    return r.choice([when.isoformat(), f"{when.day} {when:%B} {when.year}", f"{when:%B} {when.day}, {when.year}"])


def _place(name: str, r: random.Random) -> Place:
    opened = date(1900, 1, 1) + timedelta(r.randrange(365 * 120))
    person = f"{r.choice(NAMES)} {r.choice(SURNAMES)}"
    return Place(name, r.randint(4, 60), opened, person, r.randint(11, 999), [])


def _report(place: Place, facts: tuple[str, ...], filler: int, r: random.Random) -> str:
    said = {
        "staff": r.choice(["{p} employs {n} people.", "At {p}, {n} people work.", "{p} has a staff of {n}."]).format(
            p=place.name, n=place.staff
        ),
        "opened": r.choice(
            ["{p} opened on {d}.", "The doors of {p} opened on {d}.", "Since {d}, {p} has been open."]
        ).format(p=place.name, d=_written(place.opened, r)),
        "head": r.choice(["{p} is led by {h}.", "The head of {p} is {h}.", "{h} leads {p}."]).format(
            p=place.name, h=place.head
        ),
        "budget": r.choice(["{p} may spend {b} thousand a year.", "The yearly budget of {p} is {b} thousand."]).format(
            p=place.name, b=place.budget
        ),
    }
    sentences = [said[fact] for fact in facts] + place.notes
    for line in r.sample(FILLER, min(filler, len(FILLER))):
        values = {
            "year": r.randint(1930, 2019),
            "small": r.randint(2, 59),
            "number": r.randint(11, 400),
            "colour": r.choice(COLOURS),
            "person": f"{r.choice(NAMES)} {r.choice(SURNAMES)}",
        }
        sentences.insert(r.randrange(len(sentences) + 1), line.format(**values))
    return " ".join(sentences)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _biggest(places: list[Place], r: random.Random) -> Made:
    five = places[:NEEDED]
    for place, staff in zip(five, r.sample(range(4, 60), NEEDED), strict=True):
        place.staff = staff
    asked = [place.name for place in r.sample(five, NEEDED)]
    top = max(five, key=lambda place: place.staff)
    return f"Which of {_listed(asked)} employs the most people? Give its name.", top.name, asked


def _earliest(places: list[Place], r: random.Random) -> Made:
    asked = [place.name for place in r.sample(places[:NEEDED], NEEDED)]
    first = min(place.opened for place in places[:NEEDED])
    question = f"On which date did the first of {_listed(asked)} open? Write the date as YYYY-MM-DD."
    return question, first.isoformat(), asked


def _total(places: list[Place], r: random.Random) -> Made:
    asked = [place.name for place in r.sample(places[:NEEDED], NEEDED)]
    total = sum(place.staff for place in places[:NEEDED])
    return f"How many people do {_listed(asked)} employ together? Give the number.", str(total), asked


def _head_of_smallest(places: list[Place], r: random.Random) -> Made:
    six = places[: NEEDED + 1]
    for place, budget in zip(six, r.sample(range(11, 999), NEEDED + 1), strict=True):
        place.budget = budget
    asked = [place.name for place in r.sample(six, NEEDED + 1)]
    least = min(six, key=lambda place: place.budget)
    return f"Who leads the one of {_listed(asked)} that has the smallest budget? Give the full name.", least.head, asked


def _box(places: list[Place], r: random.Random) -> Made:
    """A box that was sent on five times; another one crosses its way."""
    mine, other = r.sample(COLOURS, 2)
    for colour, chain in ((mine, places[: NEEDED + 1]), (other, r.sample(places[: NEEDED + 1], NEEDED + 1))):
        for at, to in pairwise(chain):
            line = r.choice(
                ["The {c} box was kept here until it was sent to {p}.", "From here the {c} box went to {p}."]
            )
            at.notes.append(line.format(c=colour, p=to.name))
        chain[-1].notes.append(f"The {colour} box was opened here.")
    start = places[0].name
    question = f"The {mine} box was first at {start}, and was sent on from place to place. Who leads the place where it was opened? "
    return f"{question}Give the full name.", places[NEEDED].head, [place.name for place in places[: NEEDED + 1]]


FAMILIES: list[tuple[str, float, tuple[str, ...], Callable[[list[Place], random.Random], Made]]] = [
    ("biggest_of_five", 0.05, ("staff",), _biggest),
    ("earliest_of_five", 0.25, ("opened",), _earliest),
    ("total_of_five", 0.45, ("staff",), _total),
    ("head_of_smallest", 0.65, ("head", "budget"), _head_of_smallest),
    ("biggest_of_five_far", 0.75, ("staff", "opened", "head"), _biggest),
    ("total_of_five_far", 0.85, ("staff", "budget", "opened", "head"), _total),
    ("box_on_its_way", 0.95, ("head", "staff"), _box),
]
"""name, difficulty, facts in every report, maker of the question"""


def _prompt(reports: list[tuple[str, str]], question: str, r: random.Random) -> str:
    ask = r.choice(["Read the documents, then answer the question.", "Answer the question from the documents below."])
    documents = "\n\n".join(f"Document {k}: {name}\n{text}" for k, (name, text) in enumerate(reports, 1))
    return f"{ask}\n\n{documents}\n\nQuestion: {question}\nEnd with one line: Answer: <your answer>"


def budget_of(difficulty: float, longest: int) -> int:
    """Tokens of a prompt: from SHORTEST, by equal factors, to `longest`."""
    return round(SHORTEST * float((longest / SHORTEST) ** difficulty))


def generate(n: int, seed: int, split: str, longest: int) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn, prompts of at most `longest` tokens; row k is a function of (k, seed, split, longest)."""
    pool = place_names(split)
    for k in range(n):
        r = random.Random(f"long_context_qa|{seed}|{split}|{k}")
        family, difficulty, facts, make = FAMILIES[k % len(FAMILIES)]
        budget = budget_of(difficulty, longest)
        names = r.sample(pool, len(pool))
        places = [_place(name, r) for name in names[: NEEDED + 1]]
        question, answer, needed = make(places, r)
        filler = min(round(len(FILLER) * difficulty), budget // 200)
        reports = [(place.name, _report(place, facts, filler, r)) for place in places]
        left = budget - tokens(_prompt(reports, question, r))
        for name in names[NEEDED + 1 :]:
            text = _report(_place(name, r), facts, filler, r)
            left -= tokens(f"Document 10: {name} {text}")
            if left < 0:
                break
            reports.append((name, text))
        r.shuffle(reports)
        numbers = {name: number for number, (name, _) in enumerate(reports, 1)}
        prompt = _prompt(reports, question, r)
        yield {
            "responses_create_params": {"input": [{"role": "user", "content": prompt}]},
            "question": question,
            "answer": answer,
            "documents": [{"title": name, "text": text} for name, text in reports],
            "needs": sorted(numbers[name] for name in needed),
            "tokens": tokens(prompt),
            "grading": "exact",
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "long_context_qa"},
        }
