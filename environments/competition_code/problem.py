"""A generated programming problem: what it asks, the trusted reference that computes its tests, and how a program for it is written.

A reference is a plain function of the arguments and the problem's constants; its own source is the gold program, so the two
cannot differ. Short problems also have an `expression`, from which programs are written that a small model can imitate.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["int", "text", "ints", "words", "rows", "grid"]
"""Of an argument: an integer, a line of text, a list of integers, of words, of rows of integers, of lines of equal length."""
Constants = dict[str, Any]

_READ: dict[Kind, str] = {
    "int": "int(input())",
    "text": "input()",
    "ints": "[int(word) for word in input().split()]",
    "words": "input().split()",
    "rows": "[[int(word) for word in input().split()] for _ in range(int(input()))]",
    "grid": "[input() for _ in range(int(input()))]",
}
_LINES: dict[Kind, str] = {
    "int": "a line with the integer {name}",
    "text": "a line with the text {name}",
    "ints": "a line with the integers of {name}, separated by spaces",
    "words": "a line with the words of {name}, separated by spaces",
    "rows": "a line with the number of rows of {name}, then that many lines with the integers of a row, separated by spaces",
    "grid": "a line with the number of lines of {name}, then these lines",
}
_TYPES: dict[Kind, str] = {
    "int": "int",
    "text": "str",
    "ints": "list[int]",
    "words": "list[str]",
    "rows": "list[list[int]]",
    "grid": "list[str]",
}


@dataclass(frozen=True)
class Problem:
    """One family of problems.

    parameters: names and kinds of the arguments, in order. constants: what makes one problem of the family.
    arguments: one test's, by (randomness, size from 0 to 9, constants). asks: phrases that complete "print ..." or "return ...", where
    `{name}` is a constant or a parameter. shots: worked examples of the same family, with other constants, in the prompt.
    """

    name: str
    difficulty: float
    reference: Callable[..., Any]
    parameters: tuple[tuple[str, Kind], ...]
    constants: Callable[[random.Random], Constants]
    arguments: Callable[[random.Random, int, Constants], Sequence[Any]]
    asks: tuple[str, ...]
    expression: str = ""
    shots: int = 0

    def answer(self, constants: Constants, arguments: Sequence[Any]) -> Any:
        """What the reference says."""
        return self.reference(*arguments, **constants)

    def ask(self, which: int, constants: Constants) -> str:
        """The phrase `which` of `asks`."""
        return self.asks[which % len(self.asks)].format(**constants, **{name: name for name, _ in self.parameters})

    def input_form(self) -> str:
        """The lines of standard input, in words."""
        return "; ".join(_LINES[kind].format(name=name) for name, kind in self.parameters)

    def signature(self) -> str:
        """The function that is asked for, with types."""
        return f"{self.name}({', '.join(f'{name}: {_TYPES[kind]}' for name, kind in self.parameters)})"

    def program(self, constants: Constants, as_function: bool) -> str:
        """A right program, or module with the function."""
        names = ", ".join(name for name, _ in self.parameters)
        if self.expression:
            value, before = self.expression.format(**{key: repr(constant) for key, constant in constants.items()}), ""
        else:
            given = "".join(f", {key}={constant!r}" for key, constant in constants.items())
            source = inspect.getsource(self.reference).replace(f"def {self.reference.__name__}(", "def solve(", 1)
            value, before = f"solve({names}{given})", source + "\n\n"
        if as_function:
            return f"{before}def {self.name}({names}):\n    return {value}\n"
        reading = "".join(f"{name} = {_READ[kind]}\n" for name, kind in self.parameters)
        return f"{before}{reading}print({value})\n"


def written(kind: Kind, argument: Any) -> str:
    """`argument` as lines of standard input."""
    if kind in ("ints", "words"):
        return " ".join(map(str, argument))
    if kind == "rows":
        return "\n".join([str(len(argument)), *(" ".join(map(str, row)) for row in argument)])
    if kind == "grid":
        return "\n".join([str(len(argument)), *argument])
    return str(argument)
