"""What an instruction's kwargs may be. Each kind reads one value, or raises ValueError with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Kind = Callable[[Any], Any]


def count(value: Any) -> int:
    """A whole number from 0 up; 3.0 is 3."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError("expected a whole number from 0 up")
    return int(value)


def position(value: Any) -> int:
    """A whole number from 1 up."""
    if (number := count(value)) < 1:
        raise ValueError("expected a whole number from 1 up")
    return number


def percentage(value: Any) -> float:
    """A number from 0 to 100."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError("expected a number from 0 to 100")
    return float(value)


def text(value: Any) -> str:
    """A string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a string that is not blank")
    return value


def word(value: Any) -> str:
    """A string that is not blank, stripped; a list of one such string counts (published rows have both)."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return text(value).strip()


def word_list(value: Any) -> list[str]:
    """A list, not empty, of strings that are not blank."""
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of strings")
    return [text(item).strip() for item in value]


def letter(value: Any) -> str:
    """One character."""
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError("expected one character")
    return value.strip().lower()


def relation(value: Any) -> str:
    """How a count compares: "at least" or "less than"."""
    if value not in ("at least", "less than"):
        raise ValueError("expected 'at least' or 'less than'")
    return str(value)


def language(value: Any) -> str:
    """A language code that the detector knows."""
    if not isinstance(value, str) or value not in LANGUAGES:
        raise ValueError(f"expected one of the language codes {' '.join(sorted(LANGUAGES))}")
    return value


LANGUAGES = frozenset(
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro ru "
    "sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw".split()
)


@dataclass(frozen=True)
class Instruction:
    """A check `check(text, **kwargs) -> bool` and the kinds of its kwargs, all of them required.

    detects: it may ask the language detector, which is not for the server's own process.
    fits: a last look at the kwargs together; raises ValueError.
    """

    check: Callable[..., bool]
    kwargs: dict[str, Kind] = field(default_factory=dict)
    detects: bool = False
    fits: Callable[[dict[str, Any]], None] | None = None

    def read(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """The kwargs as the check takes them. Null values count as absent. Raises ValueError."""
        given = {key: value for key, value in (given or {}).items() if value is not None}
        if unknown := sorted(set(given) - set(self.kwargs)):
            raise ValueError(f"unknown {unknown}; this instruction takes {sorted(self.kwargs)}")
        if missing := sorted(set(self.kwargs) - set(given)):
            raise ValueError(f"missing {missing}")
        values = {}
        for key, kind in self.kwargs.items():
            try:
                values[key] = kind(given[key])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"'{key}': {error}") from None
        if self.fits is not None:
            self.fits(values)
        return values


def compare(found: int, wanted: int, how: str) -> bool:
    """`found` stands in relation `how` to `wanted`."""
    return found >= wanted if how == "at least" else found < wanted
