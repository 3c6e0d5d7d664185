"""Seeded questions with one exact answer: read from a sentence, known, or derived in one to six steps; turns before the easy ones
show the form.

A hash of the question's parameters decides whether it belongs to train or held-out, so that no question is in both.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

NAMES = (
    "Tom Ana Omar Lena Kofi Mira Ivan Rosa Yuki Nadia Paul Greta Samir Olga Hugo Priya Dora Felix Aiko Bruno Carla Emil"
).split()  # fmt: skip
PETS = "Rex Bella Milo Luna Coco Max Ruby Oscar Daisy Leo Nala Simba Rocky Molly Toby Lucky".split()
ANIMALS = "dog cat horse rabbit parrot goat turtle pony hamster duck".split()
COLOURS = "red blue green yellow black white purple orange brown pink".split()
THINGS = "car hat bag coat bike chair lamp kite scarf mug umbrella bowl".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WORDS = (
    "apple river stone cloud table garden window bridge candle forest market pencil rocket silver tunnel valley winter "
    "anchor basket copper desert engine feather guitar hammer island jacket kitchen ladder mirror needle ocean"
).split()  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "China": "Beijing",
    "Egypt": "Cairo", "Greece": "Athens", "Russia": "Moscow", "Portugal": "Lisbon", "Poland": "Warsaw", "Norway": "Oslo",
    "Sweden": "Stockholm", "Austria": "Vienna", "Ireland": "Dublin", "Kenya": "Nairobi", "Peru": "Lima", "Cuba": "Havana",
    "Chile": "Santiago", "Hungary": "Budapest", "Finland": "Helsinki", "Turkey": "Ankara", "Canada": "Ottawa",
    "Thailand": "Bangkok", "Denmark": "Copenhagen", "Belgium": "Brussels", "Iran": "Tehran", "Iraq": "Baghdad",
    "Croatia": "Zagreb", "Bulgaria": "Sofia", "Romania": "Bucharest", "Vietnam": "Hanoi", "Uruguay": "Montevideo",
    "Ghana": "Accra", "Nepal": "Kathmandu", "Iceland": "Reykjavik", "Latvia": "Riga", "Serbia": "Belgrade",
}  # fmt: skip
Made = tuple[str, str, str]
"""question, expected answer, what identifies the task"""


def _pet(r: random.Random) -> Made:
    name, animal, pet = r.choice(NAMES), r.choice(ANIMALS), r.choice(PETS)
    told, asked = r.choice(
        [
            (f"{name} has a {animal} called {pet}.", f"What is the {animal} called?"),
            (f"{name}'s {animal} is named {pet}.", f"What is the name of {name}'s {animal}?"),
            (f"The {animal} of {name} answers to {pet}.", f"Which name does the {animal} have?"),
        ]
    )
    return f"{told} {asked}", pet, f"{name} {animal} {pet}"


def _colour(r: random.Random) -> Made:
    people, things, colours = r.sample(NAMES, 3), r.sample(THINGS, 3), r.sample(COLOURS, 3)
    told = " ".join(f"{p}'s {t} is {c}." for p, t, c in zip(people, things, colours, strict=True))
    k = r.randrange(3)
    return f"{told} What colour is {people[k]}'s {things[k]}?", colours[k], f"{people} {things} {colours} {k}"


def _capital(r: random.Random) -> Made:
    country = r.choice(list(CAPITALS))
    ask = r.choice(["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital city of {}."])
    return ask.format(country), CAPITALS[country], country


def _country(r: random.Random) -> Made:
    country = r.choice(list(CAPITALS))
    ask = r.choice(["{} is the capital of which country?", "Which country has {} as its capital?"])
    return ask.format(CAPITALS[country]), country, country


def _first_word(r: random.Random) -> Made:
    words = r.sample(WORDS, 4)
    return f"Which word comes first in the alphabet: {', '.join(words)}?", min(words), " ".join(words)


def _where(r: random.Random) -> Made:
    people, places = r.sample(NAMES, 4), r.sample(list(CAPITALS.values()), 4)
    told = " ".join(f"{p} lives in {c}." for p, c in zip(people, places, strict=True))
    k = r.randrange(4)
    return f"{told} Who lives in {places[k]}?", people[k], f"{people} {places} {k}"


def _weekday(r: random.Random) -> Made:
    start, days = r.randrange(7), r.randint(2, 60)
    question = f"Today is {DAYS[start]}. Which day of the week is it in {days} days?"
    return question, DAYS[(start + days) % 7], f"{start} {days}"


def _oldest(r: random.Random) -> Made:
    people = r.sample(NAMES, 4)
    links = [f"{a} is older than {b}." for a, b in pairwise(people)]
    r.shuffle(links)
    eldest = r.random() < 0.5
    question = f"{' '.join(links)} Who is the {'oldest' if eldest else 'youngest'}?"
    return question, people[0] if eldest else people[-1], f"{people} {eldest}"


def _ages(r: random.Random) -> Made:
    people, age, steps = (
        r.sample(NAMES, 4),
        r.randint(20, 60),
        [r.choice([-7, -5, -3, -2, 2, 3, 4, 6]) for _ in range(3)],
    )
    told = [f"{people[0]} is {age} years old."]
    for k, step in enumerate(steps):
        told.append(f"{people[k + 1]} is {abs(step)} years {'older' if step > 0 else 'younger'} than {people[k]}.")
    question = f"{' '.join(told)} How old is {people[3]}? Give the number only."
    return question, str(age + sum(steps)), f"{people} {age} {steps}"


def _deadline(r: random.Random) -> Made:
    start, days = date(r.randint(2021, 2039), r.randint(1, 12), r.randint(1, 28)), r.randint(20, 200)
    end = start + timedelta(days)
    question = f"A loan of {days} days begins on {start.isoformat()}. On which date, {days} days later, does it end?"
    return f"{question} Write the date as YYYY-MM-DD.", end.isoformat(), f"{start} {days}"


def _swaps(r: random.Random) -> Made:
    people = r.sample(NAMES, 5)
    held = dict(zip(people, r.sample(THINGS, 5), strict=True))
    told = [" ".join(f"{p} has the {t}." for p, t in held.items())]
    for _ in range(6):
        a, b = r.sample(people, 2)
        told.append(f"Then {a} and {b} swap what they have.")
        held[a], held[b] = held[b], held[a]
    who = r.choice(people)
    question = " ".join(told)
    return f"{question} What does {who} have at the end?", held[who], f"{question} {who}"


FAMILIES: list[tuple[str, float, int, Callable[[random.Random], Made]]] = [
    ("pet_name", 0.05, 2, _pet),
    ("capital", 0.15, 2, _capital),
    ("colour_of_three", 0.2, 2, _colour),
    ("country", 0.25, 2, _country),
    ("who_lives_where", 0.35, 1, _where),
    ("first_word", 0.45, 1, _first_word),
    ("oldest", 0.6, 1, _oldest),
    ("weekday", 0.7, 1, _weekday),
    ("ages", 0.75, 0, _ages),
    ("deadline", 0.9, 0, _deadline),
    ("swaps", 0.95, 0, _swaps),
]
"""name, difficulty, turns that show the form, maker"""

FORMS = (
    "Answer with the answer only.",
    "Give only the answer.",
    "Reply with the answer and nothing else.",
    "Keep it short: just the answer.",
)


def is_heldout(parameters: str) -> bool:
    """Which split a task belongs to: a quarter is held out."""
    return hashlib.sha256(f"open_qa|{parameters}".encode()).digest()[0] < 64


def draw(make: Callable[[random.Random], Made], r: random.Random, heldout: bool) -> Made:
    """A task of the split."""
    while True:
        made = make(r)
        if is_heldout(made[2]) == heldout:
            return made


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). The turns shown are train tasks."""
    for k in range(n):
        r = random.Random(f"open_qa|{seed}|{split}|{k}")
        family, difficulty, shots, make = FAMILIES[k % len(FAMILIES)]
        question, answer, _ = draw(make, r, split == "heldout")
        form = r.choice(FORMS)
        turns: list[dict[str, str]] = []
        for _ in range(shots):
            shown, shown_answer, _ = draw(make, r, False)
            while shown_answer == answer:  # copying what is shown earns nothing
                shown, shown_answer, _ = draw(make, r, False)
            turns += [{"role": "user", "content": f"{shown} {form}"}, {"role": "assistant", "content": shown_answer}]
        turns.append({"role": "user", "content": f"{question} {form}"})
        yield {
            "responses_create_params": {"input": turns},
            "question": question,
            "expected_answer": answer,
            "grading": "exact",
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "open_qa"},
        }
