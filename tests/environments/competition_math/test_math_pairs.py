"""competition_math: which answers equal which, by hand; what cannot be expected; hostile answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.competition_math.server import CompetitionMath, MathSettings
from environments.competition_math.verifier import decide, gold_problem
from gym_servers.environment import Environment
from gym_servers.protocol import RowError, Verdict
from gym_servers.verification import judge
from gym_servers.workers import WorkerPool

PAIRS: list[tuple[str, list[str], list[str]]] = [
    (r"[2, 5)", [r"[2,5)"], [r"(2,5]", r"[2,5]"]),
    (r"[2,5)", [r"\left[2,5\right)"], []),
    (r"(-\infty, 3]", [r"(-\infty,3]"], [r"(-\infty,3)"]),
    (r"(0,1)\cup(2,3)", [r"(2,3)\cup(0,1)"], [r"(0,1)", r"(0,3)"]),
    (r"[1,2]\cup[3,4]", [r"[1,2] \cup [3,4]"], []),
    (r"\{1,2\}", [r"\{2,1\}", r"1,2", r"1 and 2"], [r"\{1,2,3\}"]),
    (r"\{\frac12, 3\}", [r"\{3, 0.5\}"], []),
    (r"\{-1,1\}", [r"\pm 1"], []),
    (r"\pm 1", [r"-1, 1"], []),
    (r"\{1\}", [r"1"], []),
    (r"\emptyset", [r"\{\}", r"\varnothing"], [r"0"]),
    (r"(1,2)", [r"(1,2)"], [r"(2,1)"]),
    (r"(1,2,3)", [], [r"(1,2)"]),
    (r"(\frac12,2)", [r"(0.5,2)"], []),
    (r"(3, \frac{\pi}{2})", [r"\left( 3, \frac{\pi}{2} \right)"], [r"(3, \pi)"]),
    (r"12 \text{ cm}", [r"12"], []),
    (
        r"12",
        [r"12 cm", r"12 \text{ square inches}", r"12\text{ cm}^2", r"\$12", r"\$ 12.00", r"12\text{ dollars}"],
        [r"-12\text{ cm}"],
    ),
    (r"12\text{ cm}", [], [r"13\text{ cm}"]),
    (r"12 \text{ cm}^2", [r"12"], []),
    (r"5\text{ km/h}", [r"5"], []),
    (r"\$12", [r"12"], []),
    (r"50\%", [r"0.5", r"\frac12"], [r"50"]),
    (r"50", [], [r"50\%"]),
    (r"12.5\%", [r"\frac{1}{8}"], []),
    (r"0.5\%", [r"0.005"], []),
    (r"100\%", [r"1"], []),
    (r"30^\circ", [r"30", r"30°"], [r"60^\circ", r"\frac{\pi}{6}"]),
    (r"30", [r"30^{\circ}", r"30\text{ degrees}"], []),
    (r"1\frac{1}{2}", [r"\frac{3}{2}"], []),
    (r"1\frac12", [r"1.5"], []),
    (
        r"\frac{1}{2}",
        [r"\frac 1 2", r"\frac1 2", r"\frac12", r"\frac1{2}", r"\frac{1} 2"],
        [r"\frac 1 2 3", r"\frac 1 23"],
    ),
    (r"4", [], [r"\frac 12 3", r"\frac 1 2 4", r"\binom 5 2 4"]),
    (r"10", [], [r"\binom 5 2", r"\binom52", r"\binom 5 2 10", r"10 \frac 1 2"]),
    (r"\binom{5}{2}", [r"\binom 5 2", r"\binom52", r"10"], [r"\binom 5 2 10"]),
    (r"\sqrt{2}", [r"\sqrt 2", r"\sqrt2"], [r"\sqrt 2 3"]),
    (r"3", [r"\log_2 8"], [r"\log_2 8 3", r"\log_2 8 9"]),
    (r"13", [], [r"12 12 13"]),
    (r"10^{200}", [r"(1/10^{400})^{-0.5}"], []),
    (r"0", [], [r"(1/10^{400})^{0.5}", r"10^{-400}\pi", r"\pi^{-400}\times\pi^{-400}"]),
    (r"\frac32", [r"1 1/2", r"1\frac{1}{2}"], []),
    (r"2\frac{1}{3}", [], [r"\frac{2}{3}"]),
    (r"-1\frac12", [r"-\frac32"], [r"-\frac12"]),
    (r"1.5\times 10^3", [r"1500"], []),
    (r"1500", [r"1.5 \times 10^{3}"], []),
    (r"3\cdot 10^{-4}", [r"0.0003"], []),
    (r"3\cdot10^{-4}", [], [r"0.003"]),
    (r"6.02\times10^{23}", [r"6.02 \times 10^{23}"], [r"6.03\times10^{23}"]),
    (r"10^{100}", [r"10^{100}"], [r"10^{99}"]),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        [r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"],
        [r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"],
    ),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", [], [r"\begin{pmatrix}1&2\end{pmatrix}"]),
    (r"\begin{pmatrix}\frac12&0\\0&1\end{pmatrix}", [r"\begin{pmatrix}0.5&0\\0&1\end{pmatrix}"], []),
    (r"x^2-1", [r"(x-1)(x+1)"], [r"x^2+1"]),
    (r"\sin^2 x", [r"1-\cos^2 x"], []),
    (r"2\sqrt{3}", [r"\sqrt{12}", r"3.4641016"], []),
    (r"\frac{\sqrt2}{2}", [r"\frac{1}{\sqrt2}"], []),
    (r"\ln 4", [r"2\ln 2"], []),
    (r"3+4i", [r"4i+3"], [r"3-4i"]),
    (r"\frac{x}{2}", [r"0.5x"], []),
    (r"y=2x+1", [r"2x+1"], [r"y=2x-1"]),
    (r"y = 2x+1", [r"y=1+2x"], []),
    (r"x>3", [r"x > 3", r"3<x"], [r"x<3"]),
    (r"x \ge 2", [r"x \geq 2"], []),
    (r"\frac{1}{3}", [r"0.3333333"], [r"0.333"]),
    (r"\frac13", [r"1/3"], []),
    (r"0.1", [r"\frac{1}{10}"], []),
    (r"-\frac{2}{3}", [r"\frac{-2}{3}", r"\frac{2}{-3}"], []),
    (r"\frac{2}{3}", [r"\frac{4}{6}"], []),
    (r"1,234", [r"1234"], []),
    (r"1234", [r"1{,}234"], []),
    (r"0", [r"-0"], []),
    (r"2", [r"+2", r"2.0"], []),
    (r".5", [r"0.5"], []),
    (r"\sqrt[3]{8}", [r"2"], []),
    (r"8", [r"2^3"], []),
    (r"\text{(C)}", [r"C"], []),
    (r"C", [r"\text{C}", r"(C)"], [r"(D)"]),
    (r"\text{Monday}", [r"monday"], []),
    (r"\text{no solution}", [r"No solution"], []),
    (r"12_{8}", [r"12_8"], []),
    (r"1010_2", [r"1010_{2}"], [r"10"]),
    (r"3:4", [r"3:4"], [r"4:3"]),
    (r"\infty", [], [r"-\infty"]),
    (r"n!", [r"n!"], []),
    (r"9!", [r"362880"], []),
    (r"2^{100}", [r"1267650600228229401496703205376"], [r"1267650600228229401496703205377"]),
    (r"a", [], [r"b"]),
    (r"\frac{a}{b}", [], [r"\frac{b}{a}"]),
    (r"90", [r"\frac{180}{2}"], []),
    (r"\text{May 5}", [r"May 5"], []),
]
"""expected answer, answers that equal it, answers that do not"""


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    warm: list[tuple[str, tuple[Any, ...]]] = [("gym_servers.verification:prepare_environment", ("competition_math",))]
    with contextlib.closing(WorkerPool(1, warm=warm)) as made:
        yield made


def grade(text: str, expected: str, pool: WorkerPool, environment: Environment | None = None) -> Verdict:
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
    return asyncio.run(judge(environment or CompetitionMath(), {"expected_answer": expected}, output, pool))


@pytest.mark.parametrize(("expected", "right", "wrong"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_what_equals_an_expected_answer(expected: str, right: list[str], wrong: list[str], pool: WorkerPool) -> None:
    for answers, reward in ((right, 1.0), (wrong, 0.0)):
        for answer in answers:
            assert grade(f"So it is \\boxed{{{answer}}}.", expected, pool).reward == reward, answer


UNUSABLE = [
    "",
    "  ",
    "$$",
    "\\boxed{}",
    "1/0",
    "0^{-1}",
    "\\frac{1}{0}",
    "\\frac{1}{",
    "\\boxed{\\frac{1}{2}",
    "}{",
    "7" * 1001,
]


@pytest.mark.parametrize("expected", UNUSABLE, ids=[repr(text[:20]) for text in UNUSABLE])
def test_an_expected_answer_that_nothing_equals_is_a_bad_row(expected: str) -> None:
    with pytest.raises(
        RowError, match="environment 'competition_math' task 't7': field 'expected_answer'.*no answer can equal"
    ):
        CompetitionMath().check_row({"task_id": "t7", "expected_answer": expected})


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.,/\\{}^_-+!%$()[]= boxedfrac", min_size=1, max_size=40))
def test_a_row_that_is_accepted_can_be_won_by_its_gold_answer(expected: str) -> None:
    if gold_problem(expected) is not None:
        return
    environment = CompetitionMath()
    row = environment.check_row({"expected_answer": expected})
    verdict = environment.quick(row, environment.gold(row))
    assert verdict is None or verdict.reward == 1.0


HOSTILE = {
    "tower": r"9^{9^{9}}",
    "tower of four": r"9^{9^{9^9}}",
    "binomial": r"\binom{10^7}{5\cdot10^6}",
    "factorial": r"(10^7)!",
    "sum": r"\sum_{k=1}^{10^8} 1/k",
    "product": r"\prod_{k=1}^{10^7} k",
    "nested fractions": r"\frac{1}{" * 1000 + "1" + "}" * 1000,
    "nested fractions that fit": r"\frac{1}{" * 100 + "x" + "}" * 100,
    "brackets": "(" * 100_000,
    "braces": "{" * 100_000,
    "roots": r"\sqrt{" * 300 + "2" + "}" * 300,
    "e notation": "1e999",
    "digits": "9" * 5000,
    "power of digits": "9" * 900 + "^{" + "9" * 900 + "}",
    "arabic digits": "٣",
    "full-width digits": "３",
    "superscript": "³",
    "input": r"\input{/etc/passwd}",
    "import": "__import__('os').system('touch MARK')",
    "lambda": "(lambda: open('MARK', 'w'))()",
    "exec": "exec(\"open('MARK', 'w')\")",
    "method": "3 .__class__.__base__.__subclasses__()",
    "chain of equations": " = ".join(["x"] * 400),
    "limit": r"\lim_{n\to\infty} (1+1/n)^{n!}",
    "exponentials": r"e^{e^{e^{e^{e^{10}}}}}",
    "matrix power": r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{100000}",
    "nul": "\x00",
    "surrogate": "\ud800",
    "percents": "7" + "%" * 500,
}
EXHAUSTING = {
    "power of a sum": r"(x+1)^{3000}",
    "five variables": "(a+b+c+d+e)^{60}",
    "brackets that fit": "(" * 900 + "y" + ")" * 900,
    "harmonic": r"\sum_{k=1}^{10^8} 1/k",
    "integral": r"\int_0^1 x^{x^{x^x}} dx",
    "product of sums": "*".join(f"(x+{i})" for i in range(200)),
    "floor": r"\lfloor 10^{10^{10}} \rfloor",
    "trigonometry": r"\sin(\cos(\tan(\sin(\cos(\tan(10^{1000}))))))",
}


def test_workers_do_not_say_that_the_library_has_no_time_limit(capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(WorkerPool(1)) as fresh:
        assert grade("\\boxed{(x+1)^2}", "x^2+2x+1", fresh).reward == 1.0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("expected", ["4", "x^2+7"])
def test_a_hostile_answer_earns_nothing_and_runs_nothing(
    expected: str, pool: WorkerPool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    environment = CompetitionMath(MathSettings(verify_cpu_seconds=0.5))
    for name, text in HOSTILE.items():
        forms = [f"\\boxed{{{text}}}", f"The answer is {text}", f"${text}$"]
        for form in forms if expected == "4" else forms[:1]:
            assert grade(form.replace("MARK", str(mark)), expected, pool, environment).reward == 0.0, name
    assert not mark.exists()
    assert grade("\\boxed{4}", "4", pool, environment).reward == 1.0


@pytest.mark.parametrize("name", ["power of a sum", pytest.param("all", marks=pytest.mark.slow)])
def test_what_exhausts_a_worker_earns_nothing_and_the_pool_lives_on(name: str, pool: WorkerPool) -> None:
    environment = CompetitionMath(MathSettings(verify_cpu_seconds=0.5))
    for text in EXHAUSTING.values() if name == "all" else [EXHAUSTING[name]]:
        killed = pool.kills
        verdict = grade(f"\\boxed{{{text}}}", "x^2+7", pool, environment)
        assert verdict.reward == 0.0
        assert verdict.parts.get("unverifiable_output") is True
        assert pool.kills == killed + 3  # of any worker, then of two fresh ones
    assert grade("\\boxed{7+x^2}", "x^2+7", pool).reward == 1.0


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.,/\\{}^_-+!%$()[]= boxedfrac", max_size=200), st.sampled_from(["4", "1/2", "x+1"]))
def test_no_text_breaks_the_part_that_runs_in_the_server(text: str, expected: str) -> None:
    decide(text, expected)
