"""Tasks of reasoning-gym's generators in NeMo-Gym's row form, at three levels of each dataset's own curriculum.

Train and held-out tasks share no question: a hash of it decides to which split it belongs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from environments.reasoning_gym.datasets import FIRST_LEVEL_ONLY, SCORED, SEEDED, SLOW, UNGENERATED
from environments.reasoning_gym.verifier import Entry, package
from gym_servers.protocol import OmnigymError


class Level(NamedTuple):
    """reach: how far up each attribute of a dataset's curriculum, in [0, 1]. shots: worked examples."""

    difficulty: float
    reach: float
    shots: int


LEVELS = (Level(0.1, 0.0, 1), Level(0.4, 0.2, 1), Level(0.7, 0.4, 0))
MAX_ROW_CHARS = 20_000
MAX_INDEX = 1 << 31
TRIES = 200
INSTRUCTION = "Give the final answer between <answer> and </answer>."


@lru_cache(maxsize=256)
def _dataset(name: str, level: float, seed: int) -> Any:
    """The generator `name`, at `level` of its curriculum or at the highest one below that it accepts."""
    size = 1 if name in SEEDED else MAX_INDEX
    factory = package()
    dataset, config = factory.DATASETS[name]
    if not factory.has_curriculum(name):
        return dataset(config(seed=seed, size=size))
    for lower in (level, level / 2, 0.0):
        curriculum = factory.create_curriculum(name)
        for attribute, known in curriculum.attributes.items():
            curriculum.set_attr_level(attribute, int(lower * (len(known.levels) - 1)))
        try:
            return dataset(curriculum.generate_configuration({"seed": seed, "size": size}))
        except AssertionError:  # the level's values do not fit together
            continue
    return dataset(config(seed=seed, size=size))


def _entry(name: str, level: float, index: int) -> Entry:
    """Entry `index` of a dataset, as a row read from a file would have it."""
    made = _dataset(name, level, index)[0] if name in SEEDED else _dataset(name, level, 0)[index]
    entry = {
        "question": made["question"],
        "answer": made["answer"],
        "metadata": {**made["metadata"], "source_dataset": name},
    }
    copied: Entry = json.loads(json.dumps(entry, default=lambda value: getattr(value, "tolist", lambda: str(value))()))
    return copied


def _is_heldout(name: str, question: str) -> bool:
    return hashlib.sha256(f"{name}|{question}".encode()).digest()[0] < 64


def _draw(r: random.Random, name: str, at: int, split: str) -> tuple[Entry, int]:
    """(an entry of `split`, its level): at level `at`, or near it where that has none of a split or none small enough."""
    levels = [0] if name in FIRST_LEVEL_ONLY else sorted(range(len(LEVELS)), key=lambda other: abs(other - at))
    for level in levels:
        for _ in range(TRIES):
            try:
                entry = _entry(name, LEVELS[level].reach, r.randrange(MAX_INDEX))
            except RuntimeError:  # the package gave up on this one
                continue
            if not entry["answer"] or len(json.dumps(entry)) > MAX_ROW_CHARS:  # silence is no answer
                continue
            if _is_heldout(name, entry["question"]) == (split == "heldout"):
                return entry, level
    raise OmnigymError(f"environment 'reasoning_gym': dataset '{name}' has no task for split '{split}': leave it out")


def generate(n: int, seed: int, split: str, datasets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """`n` rows, datasets in turn; row k is a function of (k, seed, split, datasets). Raises OmnigymError without the package."""
    package()
    names = list(datasets) or sorted(SCORED - SLOW - set(UNGENERATED))
    for k in range(n):
        r = random.Random(f"reasoning_gym|{seed}|{split}|{k}")
        name = names[k % len(names)]
        entry, level = _draw(r, name, (k + k // len(names)) % len(LEVELS), split)
        turns = []
        for _ in range(LEVELS[level].shots):
            shown, _ = _draw(r, name, level, "train")
            if shown["answer"] != entry["answer"]:  # copying an example earns nothing
                turns.append({"role": "user", "content": f"{shown['question']}\n\n{INSTRUCTION}"})
                turns.append({"role": "assistant", "content": f"<answer>{shown['answer']}</answer>"})
        turns.append({"role": "user", "content": f"{entry['question']}\n\n{INSTRUCTION}"})
        yield {
            "responses_create_params": {"input": turns},
            **entry,
            "difficulty": LEVELS[level].difficulty,
            "agent_ref": {"type": "responses_api_agents", "name": "reasoning_gym"},
        }
