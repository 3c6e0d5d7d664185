"""Seeded conversations whose next turn must remember, obey, follow edits and stay consistent; a rubric with checks that code can make.

A hash of the parameters decides whether a task belongs to train or held-out. Every item of the rubric asks for something that must be there,
so that a reply which avoids everything earns nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from environments.open_qa.generator import CAPITALS, COLOURS, NAMES, PETS, WORDS

Turns = list[tuple[str, str]]
"""(role, text)"""
Made = tuple[Turns, list[dict[str, Any]], str]
"""turns, rubric, gold answer"""

FOODS = "rice beans cheese honey apples carrots mushrooms onions garlic pasta bread butter tomatoes lentils olives figs".split()
CITIES = list(CAPITALS.values())
PHRASES = (
    "Stay curious.",
    "Over and out.",
    "Have a calm day.",
    "That is all.",
    "Yours, Robin.",
    "Tea is ready.",
    "Mind the gap.",
    "Until tomorrow.",
    "With kind regards.",
    "The end.",
    "Hats off.",
    "Sleep well.",
)
OPENINGS = ("Note:", "Captain:", "In short:", "Reply:", "Hello friend,", "My view:")
SMALL_TALK: list[tuple[str, str]] = [
    ("How are you today?", "I am fine, thank you."),
    ("It rains a lot here.", "Rain makes the garden grow."),
    ("I had a long day at work.", "I hope the evening is quiet."),
    ("Do you like music?", "Music is a good companion."),
    ("I am learning to cook.", "Cooking is a fine skill."),
    ("The train was late again.", "Late trains are no fun."),
]


def item(question: str, **check: Any) -> dict[str, Any]:
    """An item of the rubric whose answer must be YES."""
    return {"question": question, "pass_criteria": "YES", "check": check}


def _talk(r: random.Random, n: int) -> Turns:
    return [turn for said, reply in r.sample(SMALL_TALK, n) for turn in (("user", said), ("assistant", reply))]


def _others(pool: list[str] | tuple[str, ...], right: list[str]) -> list[str]:
    return [name for name in pool if name not in right]


def _pet(r: random.Random) -> Made:
    mine, other = r.sample(PETS, 2)
    animal, second = r.sample(["dog", "cat", "rabbit", "parrot", "goat", "pony"], 2)
    told = [f"I have a {animal} called {mine}", f"my sister has a {second} called {other}"]
    r.shuffle(told)
    turns = [("user", f"Hi! {told[0][0].upper()}{told[0][1:]}, and {told[1]}."), ("assistant", "What lovely animals.")]
    turns += [*_talk(r, 1), ("user", f"What is my {animal}'s name?")]
    rubric = [item(f"Does the reply name {mine}, and no other pet?", includes=[mine], excludes=_others(PETS, [mine]))]
    return turns, rubric, f"Your {animal}'s name is {mine}."


def _city(r: random.Random) -> Made:
    mine, friend, name = *r.sample(CITIES, 2), r.choice(NAMES)
    told = r.choice(
        [f"I live in {mine}, and my friend {name} lives in {friend}.", f"{name} lives in {friend}. I live in {mine}."]
    )
    turns = [("user", told), ("assistant", "Thank you, I will remember that."), *_talk(r, r.randint(1, 2))]
    turns.append(("user", r.choice(["Which city do I live in?", "Where do I live?"])))
    question = f"Does the reply say {mine}, and not {friend} or another city?"
    return turns, [item(question, includes=[mine], excludes=_others(CITIES, [mine]))], f"You live in {mine}."


def _ending(r: random.Random) -> Made:
    phrase, country = r.choice(PHRASES), r.choice(list(CAPITALS))
    turns = [("user", f"From now on, end every reply with the words: {phrase}"), ("assistant", f"I will. {phrase}")]
    for said, reply in r.sample(SMALL_TALK, r.randint(1, 2)):
        turns += [("user", said), ("assistant", f"{reply} {phrase}")]
    turns.append(("user", f"What is the capital of {country}?"))
    city = CAPITALS[country]
    alone = {"includes": [city], "excludes": _others(CITIES, [city])}
    rubric = [
        item(f"Does the reply name {city}, and end with '{phrase}'?", ends_with=phrase, **alone),
        item(f"Does the reply say that the capital of {country} is {city}, and no other city?", **alone),
    ]
    return turns, rubric, f"The capital of {country} is {city}. {phrase}"


def _diet(r: random.Random) -> Made:
    foods = r.sample(FOODS, 6)
    bad, good = foods[:3], foods[3]
    turns = [("user", f"I never eat {bad[0]}, {bad[1]} or {bad[2]}."), ("assistant", "Understood."), *_talk(r, 2)]
    menu = [bad[0], bad[1], good, bad[2]]
    r.shuffle(menu)
    turns.append(
        ("user", f"The cafe has dishes with {', '.join(menu)}. Name the one dish that I can eat, and no other.")
    )
    rubric = [item(f"Does the reply choose {good}, and name none of {', '.join(bad)}?", includes=[good], excludes=bad)]
    return turns, rubric, f"You can eat the dish with {good}."


def _list_edits(r: random.Random) -> Made:
    words = r.sample(FOODS, 9)
    current, spare = words[:4], words[4:]
    removed: list[str] = []
    turns = [("user", f"My shopping list: {', '.join(current)}."), ("assistant", f"Noted: {', '.join(current)}.")]
    for _ in range(r.randint(2, 4)):
        out, new = r.choice(current), spare.pop()
        current = [new if word == out else word for word in current]
        removed.append(out)
        turns += [
            ("user", f"Replace {out} with {new}."),
            ("assistant", r.choice(["Done.", "I have changed it.", "Changed."])),
        ]
    turns.append(("user", "Write the list as it is now, and nothing that is no longer on it."))
    half = len(current) // 2
    rubric = [
        item(
            f"Does the list have {', '.join(part)}, and nothing that was taken off it?", includes=part, excludes=removed
        )
        for part in (current[:half], current[half:])
    ]
    return turns, rubric, ", ".join(current)


def _quote(r: random.Random) -> Made:
    things = r.sample(WORDS, 3)
    prices = r.sample(range(11, 99), 4)
    said = ", ".join(f"the {thing} is {price} euros" for thing, price in zip(things, prices, strict=False))
    wrong, k = prices[3], r.randrange(3)
    turns = [("user", "What do your things cost?"), ("assistant", f"Here are the prices: {said}."), *_talk(r, 1)]
    asked = f"A friend says that you told me {wrong} euros for the {things[k]}. Which price did you tell me for it? Give that number only."
    turns.append(("user", asked))
    others = [str(price) for price in prices if price != prices[k]]
    question = f"Does the reply keep to {prices[k]} euros, and give no other number?"
    return turns, [item(question, includes=[str(prices[k])], excludes=others, max_words=12)], f"{prices[k]}"


def _combined(r: random.Random) -> Made:
    opening, names, colours = r.choice(OPENINGS), r.sample(NAMES, 3), r.sample(COLOURS, 4)
    turns = [
        ("user", f"Start every reply with '{opening}' and use at most 15 words."),
        ("assistant", f"{opening} I will."),
        (
            "user",
            f"The teams are: {names[0]} wears {colours[0]}, {names[1]} wears {colours[1]}, {names[2]} wears {colours[2]}.",
        ),
        ("assistant", f"{opening} I know the three teams now."),
        ("user", f"{names[0]} and {names[1]} have swapped their colours."),
        ("assistant", f"{opening} I have noted the swap."),
        ("user", f"And {names[2]} wears {colours[3]} from today."),
        ("assistant", f"{opening} Noted."),
    ]
    turns.append(("user", "Who wears what now? Name all three people with their colours."))
    now = dict(zip(names, [colours[1], colours[0], colours[3]], strict=True))
    phrases = [f"{name} wears {colour}" for name, colour in now.items()]
    pairs = [word for name, colour in now.items() for word in (name, colour)]
    form = {"starts_with": opening, "max_words": 15, "excludes": [colours[2]]}
    rubric = [
        item(
            f"Does the reply start with '{opening}', have at most 15 words, and name all three and their colours?",
            includes=pairs,
            **form,
        )
    ]
    rubric += [item(f"Does the reply say '{phrase}'?", includes=[phrase]) for phrase in phrases]
    turns[-1] = ("user", turns[-1][1] + " Write it as 'NAME wears COLOUR' for each.")
    return turns, rubric, f"{opening} {', '.join(phrases)}."


FAMILIES: list[tuple[str, float, Callable[[random.Random], Made]]] = [
    ("remember_a_name", 0.1, _pet),
    ("remember_which_city", 0.25, _city),
    ("diet", 0.4, _diet),
    ("keep_the_ending", 0.5, _ending),
    ("keep_to_a_price", 0.6, _quote),
    ("list_of_edits", 0.75, _list_edits),
    ("everything_at_once", 0.9, _combined),
]
"""name, difficulty, maker"""


def is_heldout(made: Made) -> bool:
    """Which split a task belongs to, by what the user says first and the reply that is right: a quarter is held out."""
    turns, _, gold = made
    return hashlib.sha256(f"multi_challenge|{turns[0][1]}|{gold}".encode()).digest()[0] < 64


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split)."""
    for k in range(n):
        r = random.Random(f"multi_challenge|{seed}|{split}|{k}")
        family, difficulty, make = FAMILIES[k % len(FAMILIES)]
        made = make(r)
        while is_heldout(made) != (split == "heldout"):
            made = make(r)
        turns, rubric, gold = made
        yield {
            "responses_create_params": {"input": [{"role": role, "content": text} for role, text in turns]},
            "rubric": rubric,
            "gold_answer": gold,
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "multi_challenge"},
        }
