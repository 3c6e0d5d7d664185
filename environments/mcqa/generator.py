"""Seeded multiple-choice questions whose right option code computes: comparisons, arithmetic, order, calendar, units, small logic.

The right option stands at a random place among 4 to 10, and neither its size nor its rank among the options tells it apart. Train and
held-out tasks never share a question: a hash of it decides to which split it belongs.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple


class Question(NamedTuple):
    """key: its parameters, however it is worded; text, the right option, the wrong ones."""

    key: str
    text: str
    right: str
    wrong: list[str]


KINDS = {
    "animal": ["horse", "sheep", "tiger", "rabbit", "camel", "otter", "goose", "badger"],
    "fruit": ["apple", "peach", "lemon", "cherry", "grape", "melon", "plum", "banana"],
    "tool": ["hammer", "saw", "drill", "wrench", "chisel", "pliers", "shovel", "rake"],
    "metal": ["iron", "copper", "zinc", "silver", "tin", "nickel", "gold", "platinum"],
    "instrument": ["violin", "trumpet", "drum", "flute", "harp", "piano", "guitar", "cello"],
    "vehicle": ["bus", "tractor", "bicycle", "train", "ferry", "truck", "tram", "canoe"],
}
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jon", "Kira", "Leo"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = "January February March April May June July August September October November December".split()
UNITS = [
    ("metres", "centimetres", 100),
    ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
]
UNITS += [("days", "hours", 24), ("kilometres", "metres", 1000), ("weeks", "days", 7), ("dozens", "pieces", 12)]
MEASURES = [
    ("taller than", "tallest"),
    ("older than", "oldest"),
    ("faster than", "fastest"),
    ("heavier than", "heaviest"),
]


def _near(r: random.Random, right: int, wrong: int, step: int = 1) -> list[str]:
    """Other numbers around `right`, whose rank among them is random."""
    lowest = right - step * r.randint(0, wrong)
    pool = [value for k in range(wrong + 3) if (value := lowest + k * step) != right]
    return [str(value) for value in r.sample(pool, wrong)]


def _extreme(r: random.Random, wrong: int) -> Question:
    largest = r.random() < 0.5
    values = r.sample(range(1, 1000 if wrong > 3 else 100), wrong + 1)
    right = max(values) if largest else min(values)
    word = "largest" if largest else "smallest"
    ask = r.choice([f"Which number is the {word}?", f"Which of these is the {word} number?"])
    shown = ", ".join(map(str, values))
    return Question(
        f"{word} {sorted(values)}", f"{ask} The numbers: {shown}.", str(right), [str(v) for v in values if v != right]
    )


def _kind(r: random.Random, wrong: int) -> Question:
    kind, other = r.sample(sorted(KINDS), 2)
    right = r.choice(KINDS[kind])
    article = "an" if kind[0] in "aeiou" else "a"
    distractors = r.sample(KINDS[other], wrong)
    ask = r.choice([f"Which of these is {article} {kind}?", f"Which word names {article} {kind}?"])
    shown = ", ".join(r.sample([right, *distractors], wrong + 1))
    return Question(f"{right} {sorted(distractors)}", f"{ask} The words: {shown}.", right, distractors)


def _sum(r: random.Random, wrong: int) -> Question:
    a, b = r.randint(1, 12), r.randint(1, 12)
    ask = r.choice([f"What is {a} + {b}?", f"Which number is the sum of {a} and {b}?"])
    return Question(f"{min(a, b)} {max(a, b)}", ask, str(a + b), _near(r, a + b, wrong))


def _odd_one_out(r: random.Random, wrong: int) -> Question:
    kind, other = r.sample(sorted(KINDS), 2)
    right, distractors = r.choice(KINDS[other]), r.sample(KINDS[kind], wrong)
    shown = ", ".join(r.sample([right, *distractors], wrong + 1))
    ask = r.choice(["Which word does not belong with the others", "Which one is the odd one out"])
    return Question(f"{right} {sorted(distractors)}", f"{ask}: {shown}?", right, distractors)


def _following(r: random.Random, wrong: int) -> Question:
    names, what = r.choice([(DAYS, "day"), (MONTHS, "month")])
    start, step = r.randrange(len(names)), r.choice([-2, -1, 1, 2, 3])
    right = names[(start + step) % len(names)]
    distractors = r.sample([name for name in names if name != right], min(wrong, len(names) - 1))
    relation = "after" if step > 0 else "before"
    count = f"{abs(step)} {what}{'s' if abs(step) > 1 else ''}"
    return Question(
        f"{names[start]} {step}", f"Which {what} comes {count} {relation} {names[start]}?", right, distractors
    )


def _alphabet(r: random.Random, wrong: int) -> Question:
    words = r.sample([word for kind in KINDS.values() for word in kind], wrong + 1)
    first = r.random() < 0.5
    right = min(words) if first else max(words)
    ask = f"Which word comes {'first' if first else 'last'} in the dictionary: {', '.join(words)}?"
    return Question(f"{first} {sorted(words)}", ask, right, [word for word in words if word != right])


def _unit(r: random.Random, wrong: int) -> Question:
    large, small, factor = r.choice(UNITS)
    count = r.randint(2, 30)
    right = count * factor
    return Question(
        f"{count} {large}",
        f"How many {small} are {count} {large}?",
        str(right),
        _near(r, right, wrong, max(1, factor // 2)),
    )


def _sorted(r: random.Random, wrong: int) -> Question:
    values = sorted(r.sample(range(10, 100), 4))
    orders = {tuple(values)}
    while len(orders) < wrong + 1:
        shuffled = list(values)
        i, j = sorted(r.sample(range(4), 2))
        shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
        if r.random() < 0.5:
            r.shuffle(shuffled)
        orders.add(tuple(shuffled))
    falling = r.random() < 0.5
    shown = sorted(", ".join(map(str, order[::-1] if falling else order)) for order in orders)
    right = ", ".join(map(str, values[::-1] if falling else values))
    ask = f"Which list of {min(values)} to {max(values)} goes from {'largest to smallest' if falling else 'smallest to largest'}?"
    return Question(f"{falling} {values}", ask, right, [text for text in shown if text != right])


def _product(r: random.Random, wrong: int) -> Question:
    a, b = r.randint(11, 29), r.randint(3, 19)
    ask = r.choice([f"What is {a} times {b}?", f"Which number equals {a} * {b}?"])
    return Question(f"{min(a, b)} {max(a, b)}", ask, str(a * b), _near(r, a * b, wrong, r.choice([1, 2, 10])))


def _weekday(r: random.Random, wrong: int) -> Question:
    start, step = r.randrange(7), r.randint(10, 120)
    right = DAYS[(start + step) % 7]
    others = r.sample([day for day in DAYS if day != right], min(wrong, 6))
    return Question(
        f"{start} {step}", f"Today is {DAYS[start]}. Which day of the week is it in {step} days?", right, others
    )


def _remainder(r: random.Random, wrong: int) -> Question:
    divisor, number = r.randint(11, 29), r.randint(100, 999)
    right = number % divisor
    others = r.sample([value for value in range(divisor) if value != right], wrong)
    return Question(
        f"{number} {divisor}",
        f"What is the remainder of {number} divided by {divisor}?",
        str(right),
        list(map(str, others)),
    )


def _order(r: random.Random, wrong: int) -> Question:
    """A chain of comparisons in random order; the one at a given place of it is asked."""
    people = r.sample(NAMES, wrong + 1)
    than, most = r.choice(MEASURES)
    facts = [f"{a} is {than} {b}." for a, b in pairwise(people)]
    r.shuffle(facts)
    place = r.randrange(3)
    asked = most if place == 0 else f"{['', 'second', 'third'][place]} {most}"
    right = people[place]
    return Question(f"{people}", f"{' '.join(facts)} Who is the {asked}?", right, sorted(set(people) - {right}))


def _liars(r: random.Random, wrong: int) -> Question:
    """Each says how many of them lie, or tell the truth; no two say the same, so that exactly one is right."""
    people = r.sample(NAMES, wrong + 1)
    lying = r.random() < 0.5
    counts = r.sample(range(1, wrong + 2), wrong + 1)
    right = people[counts.index(wrong if lying else 1)]
    what = ["tell the truth", "lie"][lying]
    says = " ".join(f"{name} says: exactly {count} of us {what}." for name, count in zip(people, counts, strict=True))
    text = f"Each of {len(people)} people either lies or tells the truth. {says} Who tells the truth?"
    return Question(f"{lying} {people} {counts}", text, right, sorted(set(people) - {right}))


def _power(r: random.Random, wrong: int) -> Question:
    base, exponent, modulus = r.randint(2, 19), r.randint(12, 60), r.choice([23, 29, 31, 37, 41])
    right = pow(base, exponent, modulus)
    others = r.sample([value for value in range(modulus) if value != right], wrong)
    return Question(
        f"{base} {exponent} {modulus}",
        f"What is {base}^{exponent} modulo {modulus}?",
        str(right),
        list(map(str, others)),
    )


FAMILIES: list[tuple[str, float, int, int, Callable[[random.Random, int], Question]]] = [
    ("kind_of_four", 0.05, 4, 2, _kind),
    ("extreme_of_four", 0.10, 4, 2, _extreme),
    ("small_sum", 0.15, 4, 2, _sum),
    ("odd_one_out", 0.25, 4, 2, _odd_one_out),
    ("following", 0.30, 5, 1, _following),
    ("dictionary", 0.40, 5, 1, _alphabet),
    ("units", 0.45, 5, 1, _unit),
    ("sorted_list", 0.50, 6, 1, _sorted),
    ("extreme_of_ten", 0.55, 10, 0, _extreme),
    ("product", 0.65, 6, 0, _product),
    ("weekday", 0.70, 7, 0, _weekday),
    ("remainder", 0.75, 8, 0, _remainder),
    ("chain_of_comparisons", 0.80, 8, 0, _order),
    ("who_tells_the_truth", 0.85, 8, 0, _liars),
    ("modular_power", 0.95, 10, 0, _power),
]
"""name, difficulty, options, worked examples, maker"""

STYLES: list[tuple[str, str, str, str | None]] = [
    ("Put the letter of the right option in \\boxed{}.", "\\boxed{%s}", "strict_single_letter_boxed", None),
    ("Give only the letter of your choice, as \\boxed{letter}.", "\\boxed{%s}", "strict_single_letter_boxed", None),
    ("End with a line of the form: Answer: letter", "Answer: %s", "lenient_answer_colon", None),
    ("Answer with \\boxed{} around the letter or the text of the option.", "\\boxed{%s}", "lenient_boxed", None),
    (
        "Finish with: Final Choice: letter",
        "Final Choice: %s",
        "strict_single_letter_boxed",
        r"Final Choice:\s*([A-Za-z])\b",
    ),
    (
        "Write at the end: Option Selected: letter",
        "Option Selected: %s",
        "lenient_boxed",
        r"Option Selected:\s*([A-Z])\b",
    ),
]
"""instruction, form of the answer, grading mode, regex"""


def _is_heldout(family: str, question: Question) -> bool:
    return hashlib.sha256(f"{family}|{question.key}".encode()).digest()[0] < 64


def _draw(
    family: str, make: Callable[[random.Random, int], Question], count: int, r: random.Random, split: str
) -> Question:
    while True:
        question = make(r, count - 1)
        if _is_heldout(family, question) == (split == "heldout"):
            return question


def _laid_out(r: random.Random, question: Question) -> tuple[str, dict[str, str], str]:
    """(prompt, options by letter, letter of the right one)."""
    place = r.randrange(len(question.wrong) + 1)
    texts = r.sample(question.wrong, len(question.wrong))
    texts.insert(place, question.right)
    options = {chr(ord("A") + k): text for k, text in enumerate(texts)}
    lines = "\n".join(f"{letter}: {text}" for letter, text in options.items())
    return f"{question.text}\n{lines}", options, chr(ord("A") + place)


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split). Worked examples are train tasks with another letter."""
    for k in range(n):
        r = random.Random(f"mcqa|{seed}|{split}|{k}")
        family, difficulty, count, shots, make = FAMILIES[k % len(FAMILIES)]
        ask, form, mode, pattern = r.choice(STYLES)
        question = _draw(family, make, count, r, split)
        prompt, options, letter = _laid_out(r, question)
        turns: list[dict[str, str]] = []
        while len(turns) < 2 * shots:
            shown = _draw(family, make, count, r, "train")
            shown_prompt, _, shown_letter = _laid_out(r, shown)
            if shown_letter == letter or shown.key == question.key:  # copying an example earns nothing
                continue
            turns.append({"role": "user", "content": f"{shown_prompt}\n{ask}"})
            turns.append({"role": "assistant", "content": form % shown_letter})
        turns.append({"role": "user", "content": f"{prompt}\n{ask}"})
        row: dict[str, Any] = {
            "responses_create_params": {"input": turns},
            "options": [{key: text} for key, text in options.items()],
            "expected_answer": letter,
            "grading_mode": mode,
            "family": family,
            "difficulty": difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "mcqa"},
        }
        if pattern is not None:
            row["template_metadata"] = {"output_regex": pattern}
        yield row
