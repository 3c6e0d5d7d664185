"""Seeded tasks in eight families of short everyday writing. Each task asks for a form (bullets, a title, small letters, ...) and
for something that a fixed or empty answer cannot have: a word of the task's topic, or a number of words. Some words must differ, so
that saying the wanted word again and again earns nothing.

Where repeating the request would pass (it holds the keyword and is long enough), the task also forbids a word of the request.
Difficulty is the family's own, less a share for each worked example (few-shot turns). Train and held-out share no topic, keyword,
closing phrase or number; worked examples come from the train topics and never have what the task asks for, so that copying
one earns nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from environments.instruction_following.topics import ENDINGS, HELDOUT, TRAIN, Topic

TOPICS = {"train": TRAIN, "heldout": HELDOUT}
LEAST_WORDS = {"train": [6, 8, 10], "heldout": [7, 9]}
MOST_WORDS = {"train": [20, 24, 30], "heldout": [22, 26]}
BULLETS = {"train": [2, 4], "heldout": [3]}
EASIER_PER_EXAMPLE = 0.15


@dataclass(frozen=True)
class Made:
    """One task of a family: what is asked, the instructions that check it, an answer that keeps them, and the text that every
    such answer has and no worked example may have."""

    ask: str
    checks: list[tuple[str, dict[str, Any]]]
    answer: str
    anchor: str


Family = Callable[[random.Random, str, Topic, str, str], Made]
"""From random, split, topic, keyword and closing phrase to a task; the phrase is the same in a task and its worked examples."""


def _existence(word: str) -> tuple[str, dict[str, Any]]:
    return "keywords:existence", {"keywords": [word]}


NO_ECHO = "Do not repeat these instructions."


def _no_echo() -> tuple[str, dict[str, Any]]:
    """Fails the request itself as an answer: NO_ECHO, which is a part of it, has the word."""
    return "keywords:forbidden_words", {"forbidden_words": ["instructions"]}


def _at_least(number: int) -> tuple[str, dict[str, Any]]:
    return "length_constraints:number_words", {"num_words": number, "relation": "at least"}


def _varied(number: int) -> tuple[str, dict[str, Any]]:
    """Fails one word said over and over, which no prompt asks for and none forbids."""
    return "count:unique_word_count", {"N": number}


def _keyword(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    least = r.choice(LEAST_WORDS[split])
    ask = f'Write one sentence about {topic.phrase} with at least {least} words. Use the word "{word}". {NO_ECHO}'
    return Made(ask, [_existence(word), _at_least(least), _no_echo(), _varied(5)], topic.sentences[word], word)


def _range(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    least, most = r.choice(LEAST_WORDS[split]), r.choice(MOST_WORDS[split])
    ask = f'In {least} to {most} words, say something about {topic.phrase}. Use the word "{word}". {NO_ECHO}'
    bounds = {"min_words": least, "max_words": most}
    checks = [("count:word_count_range", bounds), _existence(word), _no_echo(), _varied(5)]
    return Made(ask, checks, topic.sentences[word], word)


def _no_comma(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    least = r.choice(LEAST_WORDS[split])
    ask = f'Write at least {least} words about {topic.phrase}. Use the word "{word}". Do not use any commas. {NO_ECHO}'
    checks = [("punctuation:no_comma", {}), _existence(word), _at_least(least), _no_echo(), _varied(5)]
    return Made(ask, checks, topic.sentences[word], word)


def _bullets(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    number = r.choice(BULLETS[split])
    others = [other for other in topic.sentences if other != word]
    items = [f"the {word}", *(f"the {other}" for other in others), topic.phrase][:number]
    r.shuffle(items)
    ask = (
        f'Write a list about {topic.phrase} with exactly {number} bullet points. Start each line with "* ". '
        f'Use the word "{word}". {NO_ECHO}'
    )
    checks = [
        ("detectable_format:number_bullet_lists", {"num_bullets": number}),
        _existence(word),
        _no_echo(),
        _varied(number + 1),
    ]
    return Made(ask, checks, "\n".join(f"* {item}" for item in items), word)


def _ending(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    least = r.choice(LEAST_WORDS[split])
    ask = (
        f"Write at least {least} words about {topic.phrase}. {NO_ECHO} "
        f"End your answer with exactly this phrase: {phrase}"
    )
    checks = [
        ("startend:end_checker", {"end_phrase": phrase}),
        _existence(topic.name),
        _at_least(least),
        _no_echo(),
        _varied(4 + len(set(phrase.lower().split()))),
    ]
    return Made(ask, checks, f"{topic.sentences[word]} {phrase}", topic.name)


def _title(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    least = r.choice(LEAST_WORDS[split])
    ask = (
        f"Write at least {least} words about {topic.phrase}. Begin with a title in double angle brackets, "
        f"such as <<my title>>. {NO_ECHO}"
    )
    checks = [("detectable_format:title", {}), _existence(topic.name), _at_least(least), _no_echo(), _varied(5)]
    return Made(ask, checks, f"<<The {topic.name} and the {word}>>\n{topic.sentences[word]}", topic.name)


def _lowercase(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    ask = f'Write a sentence about {topic.phrase} in all lowercase letters. Use the word "{word}".'
    checks = [("change_case:english_lowercase", {}), _existence(word), _varied(4)]
    return Made(ask, checks, topic.sentences[word].lower(), word)


def _avoid(r: random.Random, split: str, topic: Topic, word: str, phrase: str) -> Made:
    least = r.choice(LEAST_WORDS[split])
    forbidden = r.choice([other for other in topic.sentences if other not in topic.sentences[word].lower()])
    ask = f'Write at least {least} words about {topic.phrase}. Do not use the word "{forbidden}".'
    checks = [
        ("keywords:forbidden_words", {"forbidden_words": [forbidden]}),
        _existence(topic.name),
        _at_least(least),
        _varied(5),
    ]
    return Made(ask, checks, topic.sentences[word], topic.name)


FAMILIES: list[tuple[str, float, tuple[int, ...], Family]] = [
    ("keyword", 0.75, (0, 1, 2), _keyword),
    ("word_range", 0.75, (0, 1), _range),
    ("no_comma", 0.85, (0, 1, 2), _no_comma),
    ("bullets", 0.7, (1, 2), _bullets),
    ("ending", 0.75, (1, 2), _ending),
    ("title", 0.75, (1, 2), _title),
    ("lowercase", 0.6, (2,), _lowercase),
    ("avoid", 0.55, (0, 1), _avoid),
]
"""name, difficulty without worked examples, how many of these a task may have, maker"""


def generate(n: int, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """`n` rows, families in turn; row k is a function of (k, seed, split)."""
    for k in range(n):
        r = random.Random(f"instruction_following|{seed}|{split}|{k}")
        family, hardness, shots, make = FAMILIES[k % len(FAMILIES)]
        topic = r.choice(TOPICS[split])
        phrase = r.choice(ENDINGS[split])
        made = make(r, split, topic, r.choice(list(topic.sentences)), phrase)
        turns: list[dict[str, str]] = []
        examples = r.choice(shots)
        for shown in r.sample(TRAIN, len(TRAIN)):
            example = make(r, "train", shown, r.choice(list(shown.sentences)), phrase)
            if len(turns) == 2 * examples:
                break
            if shown is topic or made.anchor.lower() in example.answer.lower():
                continue
            turns += [{"role": "user", "content": example.ask}, {"role": "assistant", "content": example.answer}]
        turns.append({"role": "user", "content": made.ask})
        yield {
            "responses_create_params": {"input": turns},
            "instruction_id_list": [identifier for identifier, _ in made.checks],
            "kwargs": [dict(given) for _, given in made.checks],
            "prompt": made.ask,
            "grading_mode": "binary",
            "gold_answer": made.answer,
            "family": family,
            "difficulty": round(hardness - EASIER_PER_EXAMPLE * (len(turns) // 2), 2),
            "agent_ref": {"type": "responses_api_agents", "name": "instruction_following"},
        }


def shortcuts(fields: dict[str, Any]) -> dict[str, str]:
    """Answers to a generated row that have what it asks for and say nothing: the wanted words again and again in each form; a worked
    example; the closing phrase. None follows all of its instructions."""
    given = dict(zip(fields["instruction_id_list"], fields["kwargs"], strict=True))
    word = given.get("keywords:existence", {}).get("keywords", ["yes"])[0]
    phrase = given.get("startend:end_checker", {}).get("end_phrase", "")
    bullets = given.get("detectable_format:number_bullet_lists", {}).get("num_bullets", 3)
    found = {
        "keyword again and again": f"{' '.join([word] * 12)} {phrase}".strip(),
        "keyword as title": f"<<{word}>> {' '.join([word] * 12)}",
        "keyword as bullets": "\n".join([f"* {word}"] * bullets),
    }
    if phrase:
        found["closing phrase"] = phrase
    turns = fields.get("responses_create_params", {}).get("input", [])
    shown = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return found | {f"worked example {k}": text for k, text in enumerate(shown)}


def gold(fields: dict[str, Any]) -> str | None:
    """The answer that a generated row carries; None for other rows."""
    answer = fields.get("gold_answer")
    return answer if isinstance(answer, str) else None
