"""Exact arithmetic on plain numbers: integers, decimals, fractions, roots, powers, \\pi, factorials, binomials.

A recursive descent over the characters with bounds on depth and on the size of every intermediate result, so the server may
run it on model output in its own process. What it does not read (variables, sets, sums, functions) raises `Unsupported` and
is left to the symbolic comparison. Results are Fractions where exact, floats where a root or \\pi comes in.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_BITS = 8192
MAX_DIGITS = MAX_BITS // 2
"""Longer literals have over MAX_BITS anyway, and Python refuses to read those of over 4,300 digits."""
MAX_DEPTH = 40
MAX_FACTORIAL = 500
MAX_BINOMIAL = 2000
PLACES = 6
"""Decimals agree when they are equal after rounding to this many places (math-verify's float_rounding)."""


class Unsupported(Exception):
    """Not plain arithmetic."""


class TooLarge(Exception):
    """A result beyond MAX_BITS, or an argument that would lead to one."""


class Undefined(Exception):
    """Division by zero and the like."""


@dataclass(frozen=True)
class Value:
    """number: Fraction if exact, else float; decimal: whether a decimal point was written anywhere."""

    number: Fraction | float
    decimal: bool = False


_LITERAL = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+")
_INTEGER = re.compile(r"[0-9]+")
_SPACE = re.compile(r"(?:\s|\\(?:left|right)(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|~|\\!)*")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_MIXED = re.compile(r"([+-]?)\s*([0-9]{1,300})\s+([0-9]{1,300})\s*/\s*([0-9]{1,300})")
_TIMES = {"*", "×", "·", "\\cdot", "\\times", "\\ast"}
_TOO_SMALL = "too small for a float"
_OVER = {"/", "÷", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}


def evaluate(text: str) -> Value:
    """Value of `text`. Raises Unsupported, TooLarge or Undefined."""
    mixed = _MIXED.fullmatch(text.strip())
    if mixed:
        sign, whole, above, below = mixed.groups()
        if int(below) == 0:
            raise Undefined(text)
        number = int(whole) + Fraction(int(above), int(below))
        return Value(-number if sign == "-" else number)
    parser = _Parser(text)
    value = parser.sum()
    parser.space()
    if parser.position != len(text):
        raise Unsupported(text)
    return value


def same(gold: Value, answer: Value) -> bool | None:
    """Whether two values are the same number; None where floats are too close to tell.

    Exact numbers must be equal. Where a decimal is written, both are rounded to six places (0.333333 is 1/3, 0.33 is not);
    the relative difference is bounded too, so that 0 does not pass for 0.0000001.
    """
    a, b = gold.number, answer.number
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == b:
            return True
        if not (gold.decimal or answer.decimal):
            return False
        scale = 10**PLACES
        return round(a * scale) == round(b * scale) and abs(a - b) <= Fraction(1, 10**5) * abs(a)
    try:
        x, y = float(a), float(b)
    except OverflowError:
        return None
    difference, size = abs(x - y), max(abs(x), abs(y))
    if difference <= 1e-12 * size:
        return True
    if gold.decimal or answer.decimal:
        if round(x, PLACES) == round(y, PLACES):
            return difference <= 1e-5 * abs(x)
        return False if difference > 2 * 10**-PLACES else None
    return False if difference > 1e-7 * size else None


def _bounded(number: Fraction | float) -> Fraction | float:
    if isinstance(number, Fraction):
        if number.numerator.bit_length() > MAX_BITS or number.denominator.bit_length() > MAX_BITS:
            raise TooLarge
    elif math.isinf(number):
        raise TooLarge
    elif math.isnan(number):
        raise Undefined
    return number


def _float(number: Fraction | float) -> float:
    try:
        result = float(number)
    except OverflowError:
        raise TooLarge from None
    if result == 0.0 and number != 0:
        raise Unsupported(_TOO_SMALL)
    return result


class _Parser:
    """One expression. `position` moves forward only."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.depth = 0

    def space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        assert match is not None
        self.position = match.end()

    def peek(self) -> str:
        """The next command or character; "" at the end."""
        self.space()
        command = _COMMAND.match(self.text, self.position)
        if command:
            return command.group()
        return self.text[self.position : self.position + 1]

    def take(self, token: str) -> None:
        if self.peek() != token:
            raise Unsupported(f"expected {token}")
        self.position += len(token)

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("nested too deep")
        value = self.product()
        while (token := self.peek()) in ("+", "-"):
            self.take(token)
            right = self.product()
            value = self.combine(value, right, token)
        self.depth -= 1
        return value

    def product(self) -> Value:
        sign = 1
        while (token := self.peek()) in ("+", "-"):
            self.take(token)
            sign = -sign if token == "-" else sign
        value = self.power()
        divided = False
        while True:
            token = self.peek()
            if token in _TIMES or token in _OVER:
                self.take(token)
                negative = False
                if self.peek() == "-":
                    self.take("-")
                    negative = True
                right = self.power()
                if negative:
                    right = Value(-right.number, right.decimal)
                value = self.combine(value, right, "*" if token in _TIMES else "/")
                divided = divided or token in _OVER
            elif token in ("(", "\\sqrt", "\\pi", "π"):
                if divided:
                    raise Unsupported("1/2\\pi can be read in two ways")
                value = self.combine(value, self.power(), "*")
            else:
                break
        return Value(-value.number, value.decimal) if sign < 0 else value

    def power(self) -> Value:
        value = self.atom()
        while self.peek() == "!":
            self.take("!")
            number = value.number
            if not isinstance(number, Fraction) or number.denominator != 1 or number < 0:
                raise Unsupported("factorial of a number that is not a natural one")
            if number > MAX_FACTORIAL:
                raise TooLarge
            value = Value(Fraction(math.factorial(int(number))))
        if self.peek() != "^":
            return value
        self.take("^")
        token = self.peek()
        if token == "{":
            exponent = self.group("{", "}")
        elif token == "(":
            exponent = self.group("(", ")")
        else:
            exponent = self.atom()
        if self.peek() in ("^", "!"):
            raise Unsupported("power of a power without braces")
        return self.raised(value, exponent)

    def group(self, opening: str, closing: str) -> Value:
        self.take(opening)
        value = self.sum()
        self.take(closing)
        return value

    def argument(self) -> Value:
        """Argument of a LaTeX command: a group in braces, or one digit."""
        if self.peek() == "{":
            return self.group("{", "}")
        digit = self.text[self.position : self.position + 1]
        if not _INTEGER.fullmatch(digit):
            raise Unsupported("argument without braces")
        self.position += 1
        return Value(Fraction(int(digit)))

    def atom(self) -> Value:
        token = self.peek()
        if token in _FRACTIONS:
            return self.fraction()
        if token in ("(", "{"):
            return self.group(token, ")" if token == "(" else "}")
        if token in ("\\pi", "π"):
            self.take(token)
            return Value(math.pi)
        if token == "\\sqrt":
            return self.root()
        if token in ("\\binom", "\\dbinom", "\\tbinom"):
            self.take(token)
            return self.binomial(self.argument(), self.argument())
        literal = _LITERAL.match(self.text, self.position)
        if literal is None:
            raise Unsupported(token)
        self.position = literal.end()
        written = literal.group()
        if len(written) > MAX_DIGITS:
            raise TooLarge
        value = Value(_bounded(Fraction(written.replace(",", ""))), "." in written)
        following = self.peek()
        if _LITERAL.match(self.text, self.position) or following == "{":
            raise Unsupported("two numbers side by side")
        if following in _FRACTIONS:
            if not _INTEGER.fullmatch(written):
                raise Unsupported("a decimal before a fraction")
            part = self.fraction()
            if not isinstance(part.number, Fraction) or not 0 < part.number < 1:
                raise Unsupported("not a mixed number")
            return self.combine(value, part, "+")
        return value

    def fraction(self) -> Value:
        self.take(self.peek())
        above = self.argument()
        return self.combine(above, self.argument(), "/")

    def root(self) -> Value:
        self.take("\\sqrt")
        degree = 2
        if self.peek() == "[":
            index = self.group("[", "]").number
            if not isinstance(index, Fraction) or index.denominator != 1 or not 2 <= index <= 64:
                raise Unsupported("root of that degree")
            degree = int(index)
        value = self.argument()
        if _LITERAL.match(self.text, self.position):
            raise Unsupported("\\sqrt12 can be read in two ways")
        if value.number < 0:
            raise Unsupported("root of a negative number")
        if isinstance(value.number, Fraction):
            above, below = _exact_root(value.number.numerator, degree), _exact_root(value.number.denominator, degree)
            if above is not None and below is not None:
                return Value(Fraction(above, below), value.decimal)
        return Value(_bounded(_float(value.number) ** (1.0 / degree)), value.decimal)

    def binomial(self, above: Value, below: Value) -> Value:
        n, k = above.number, below.number
        if not (isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1):
            raise Unsupported("binomial of numbers that are not integers")
        if n < 0 or k < 0:
            raise Unsupported("binomial of negative numbers")
        if n > MAX_BINOMIAL:
            raise TooLarge
        return Value(Fraction(math.comb(int(n), int(k))))

    def combine(self, left: Value, right: Value, operator: str) -> Value:
        a, b = left.number, right.number
        if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
            a, b = _float(a), _float(b)
        if operator == "/" and b == 0:
            raise Undefined("division by zero")
        result: Fraction | float
        if operator == "+":
            result = a + b
        elif operator == "-":
            result = a - b
        elif operator == "*":
            result = a * b
        else:
            result = a / b
        if result == 0 and a != 0 and operator in "*/" and b != 0:
            raise Unsupported(_TOO_SMALL)
        return Value(_bounded(result), left.decimal or right.decimal)

    def raised(self, base: Value, exponent: Value) -> Value:
        a, n = base.number, exponent.number
        decimal = base.decimal or exponent.decimal
        if a == 0 and n <= 0:
            raise Undefined("zero to that power")
        if isinstance(a, Fraction) and isinstance(n, Fraction) and n.denominator == 1:
            if a in (0, 1, -1):
                return Value(a if n % 2 else a * a, decimal)
            bits = max(a.numerator.bit_length(), a.denominator.bit_length())
            if abs(n) * bits > MAX_BITS:
                raise TooLarge
            return Value(_bounded(a ** int(n)), decimal)
        if a < 0:
            raise Unsupported("power of a negative number")
        try:
            result = _float(a) ** _float(n)
        except OverflowError:
            raise TooLarge from None
        if result == 0.0 and a != 0:
            raise Unsupported(_TOO_SMALL)
        return Value(_bounded(result), decimal)


def _exact_root(number: int, degree: int) -> int | None:
    """The integer whose `degree`-th power is `number`, if there is one."""
    if degree == 2:
        guess = math.isqrt(number)
        return guess if guess * guess == number else None
    if number.bit_length() > 1000:
        return None
    guess = round(number ** (1.0 / degree))
    return next((near for near in (guess - 1, guess, guess + 1) if near >= 0 and near**degree == number), None)
