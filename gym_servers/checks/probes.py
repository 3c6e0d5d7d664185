"""Outputs that try to earn a reward without solving the task (reward hacking), for any environment.

Hacks are fixed: not one may earn the full reward, on any task. Guesses may be right by chance, on a stated share of the tasks.
"""

from __future__ import annotations

import random
from typing import Any

from gym_servers.protocol import Item, final_text

LETTERS = "ABCDEFGHIJ"
LONG_CHARS = 100_000
MOST_CANDIDATES = 200
RANDOM_SHARE = 0.05
"""Of the tasks that random words may solve."""
OTHERS_SHARE = 0.5
"""Of the tasks that another task's right answer may solve: a question of two options has that many."""


def message(text: str) -> list[Item]:
    """An assistant's answer."""
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def turns(row: dict[str, Any]) -> list[str]:
    """The prompt's messages as texts."""
    given = (row.get("responses_create_params") or {}).get("input")
    if isinstance(given, str):
        return [given]
    return [_text(item.get("content")) for item in given or [] if isinstance(item, dict)]


def candidates(row: dict[str, Any]) -> list[str]:
    """What an answer might be: the row's options, else letters, small numbers and the words of the question."""
    options = row.get("options")
    given = options if isinstance(options, list) else [options] if isinstance(options, dict) else []
    listed = [str(part) for option in given if isinstance(option, dict) for pair in option.items() for part in pair]
    if listed:
        return listed
    words = (turns(row) or [""])[-1].split()
    stripped = (word.strip(".,:;?!\"'()") for word in words)
    every = dict.fromkeys([*LETTERS, *map(str, range(21)), *filter(None, stripped)])
    return list(every)[:MOST_CANDIDATES]


def hacks(row: dict[str, Any], gold: list[Item] | None) -> dict[str, list[Item]]:
    """Fixed outputs by name. Lists of candidates begin and end with what is none, so that they are no guess at the first or last."""
    prompt = turns(row) or [""]
    every = candidates(row)
    padded = ["?", *every, "?"]
    outputs = {
        "nothing": [],
        "empty": message(""),
        "refusal": message("I am sorry, but I cannot help with that."),
        "claim": message("Done. Everything that was asked is complete and correct."),
        "prompt echo": message(prompt[-1]),
        "whole prompt echo": message("\n".join(prompt)),
        "all options": message(f"Answer: {', '.join(every)}"),
        "all options, one a line": message("\n".join(f"Answer: {one}" for one in padded)),
        "boxed everything": message(" ".join(f"\\boxed{{{one}}}" for one in padded)),
        "all in one box": message(f"\\boxed{{{', '.join(every)}}}"),
        "100 kB": message((" ".join(prompt) + " ") * (LONG_CHARS // (len(" ".join(prompt)) + 1) + 1)),
    }
    if gold is not None and len(gold) == 1 and (text := final_text(gold)):
        outputs["right answer in reasoning only"] = message(f"<think>\n{text}\n</think>")
    return outputs


def random_text(seed: int) -> list[Item]:
    """Thirty words of nobody's."""
    r = random.Random(f"probe|{seed}")
    words = ("".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 9))) for _ in range(30))
    return message(" ".join(words))
