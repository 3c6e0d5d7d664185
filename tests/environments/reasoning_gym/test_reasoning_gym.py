"""reasoning_gym: scores against the package's own, what must not be executed, life without the package."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import has_reasoning_gym
from typer.testing import CliRunner

from environments.reasoning_gym.datasets import EXACT, EXCLUDED, PACKAGE, PLAIN, SCORED, SLOW, UNGENERATED, VERSION
from environments.reasoning_gym.server import ReasoningGym, ReasoningGymSettings, said
from environments.reasoning_gym.verifier import extract, package_score, text_score
from gym_servers import cli
from gym_servers.protocol import FailureError, OmnigymError, RowError

ENVIRONMENT = ReasoningGym()
CASES = [json.loads(line) for line in (ReasoningGym.folder() / "cases.jsonl").read_text().splitlines()]
installed = pytest.mark.usefixtures("reasoning_gym_package")
QUICK_TO_MAKE = [
    "ab",
    "chain_sum",
    "coin_flip",
    "complex_arithmetic",
    "dice",
    "gsm_symbolic",
    "number_sorting",
    "spell_backward",
]


def row(dataset: str, answer: str | None, **metadata: Any) -> dict[str, Any]:
    return {"question": "q", "answer": answer, "metadata": {"source_dataset": dataset, **metadata}}


def score(dataset: str, answer: str, expected: str, **metadata: Any) -> float:
    return ENVIRONMENT.verify(
        ENVIRONMENT.check_row(row(dataset, expected, **metadata)), said(f"<answer>{answer}</answer>")
    ).reward


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    given = {key: value for key, value in case["request"].items() if key != "response"}
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            ENVIRONMENT.check_row(given)
    else:
        verdict = ENVIRONMENT.verify(ENVIRONMENT.check_row(given), case["request"]["response"]["output"])
        assert verdict.reward == pytest.approx(case["expected"]["reward"], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> 42 </answer>", "42"),
        ("<answer>1</answer> no <answer>2</answer>", "2"),
        ("<answer>1</answer> no <answer>2", "1"),
        ("<answer>a<answer>b</answer>", "a<answer>b"),
        ("</answer><answer>x", "</answer><answer>x"),
        ("\\boxed{1} \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<answer>3</answer> \\boxed{4}", "3"),
        (" 5\n", "5"),
        ("<answer>" * 8000, "<answer>" * 8000),
    ],
)
def test_the_answer_of_a_text(text: str, expected: str) -> None:
    assert extract(text) == expected


@installed
def test_every_dataset_of_the_package_has_its_place() -> None:
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) == SCORED | set(EXCLUDED)
    assert not (PLAIN & EXACT | PLAIN & PACKAGE | EXACT & PACKAGE | SCORED & set(EXCLUDED))
    own = {name for name, (cls, _) in DATASETS.items() if cls.score_answer is ProceduralDataset.score_answer}
    assert own == PLAIN


@installed
def test_plain_scores_are_the_packages() -> None:
    from reasoning_gym.factory import get_score_answer_fn

    scorer = get_score_answer_fn("gcd")
    for answer in ("12", "x12", "1", "", "121212", " 12"):
        expected: Any = scorer(answer, {"answer": "12"})
        assert text_score("gcd", answer, {"answer": "12", "metadata": {}}) == pytest.approx(expected)


ATTACKS = [
    "__import__('os').system('touch /tmp/never')",
    "[x for x in ().__class__.__base__.__subclasses__()]",
    "exec('1')",
    "(lambda: 1)()",
    "{'a': print(1)}",
    "[[1, 2], [3, 4]]",
    "x**2 + C",
    "(1+2)*8",
]


@installed
def test_no_scorer_executes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {name: next(ReasoningGym(ReasoningGymSettings(datasets=[name])).generate(1, 1, "train"))
               for name in sorted(SCORED - SLOW - set(UNGENERATED))}  # fmt: skip
    for name in PACKAGE - SLOW:  # scorers are made, and import, before
        package_score(name, str(entries[name]["answer"]), entries[name])

    def never(*_: Any, **__: Any) -> Any:
        raise SystemExit("executed")

    for builtin in ("eval", "exec", "compile"):
        monkeypatch.setattr(builtins, builtin, never)
    for name, entry in entries.items():
        parsed = ENVIRONMENT.check_row(entry)
        for attack in ATTACKS:
            assert ENVIRONMENT.verify(parsed, said(f"<answer>{attack}</answer>")).reward < 1.0, (name, attack)


@installed
def test_generated_tasks() -> None:
    for split in ("train", "heldout"):
        rows = list(ENVIRONMENT.generate(90, 3, split))  # type: ignore[arg-type]
        assert rows[:20] == list(ENVIRONMENT.generate(20, 3, split))  # type: ignore[arg-type]
        assert len({one["metadata"]["source_dataset"] for one in rows}) > 80
        for one in rows:
            assert one == json.loads(json.dumps(one)) and 0.0 <= one["difficulty"] <= 1.0
            parsed = ENVIRONMENT.check_row(one)
            gold = ENVIRONMENT.gold(parsed)
            assert gold is not None and ENVIRONMENT.verify(parsed, gold).reward == 1.0
            name = one["metadata"]["source_dataset"]
            if name in PACKAGE:
                assert package_score(name, one["answer"], one)[0] == 1.0, name
            for probe, output in ENVIRONMENT.probes(parsed).items():
                assert ENVIRONMENT.verify(parsed, output).reward < 0.999, (name, probe)
            for turn in one["responses_create_params"]["input"]:
                if turn["role"] == "assistant":
                    assert ENVIRONMENT.verify(parsed, said(turn["content"])).reward < 1.0


@installed
def test_splits_share_no_question_and_levels_differ() -> None:
    environment = ReasoningGym(ReasoningGymSettings(datasets=QUICK_TO_MAKE))
    train, heldout = (list(environment.generate(400, 4, split)) for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert not {one["question"] for one in train} & {one["question"] for one in heldout}
    assert len({one["difficulty"] for one in train}) == 3
    assert {one["metadata"]["source_dataset"] for one in train} == set(QUICK_TO_MAKE)
    assert train != list(environment.generate(400, 5, "train"))


@installed
@pytest.mark.parametrize(
    ("dataset", "answer", "expected", "metadata", "reward"),
    [
        ("complex_arithmetic", "nan", "4.0 - 7.0i", {"result": [4.0, -7.0]}, 0.0),
        ("complex_arithmetic", "1+nanj", "4.0 - 7.0i", {"result": [4.0, -7.0]}, 0.0),
        ("complex_arithmetic", "4 - 7i", "4.0 - 7.0i", {"result": [4.0, -7.0]}, 1.0),
        ("calendar_arithmetic", "-3", "-1", {"task": "recurring_event_calculations"}, 0.0),  # e^10 in the package
        ("calendar_arithmetic", "-1", "-1", {"task": "recurring_event_calculations"}, 1.0),
        ("prime_factorization", "zzz", "3 × 3 × 37", {}, 0.0),  # its scorer raises
        ("prime_factorization", "37 × 3 × 3", "3 × 3 × 37", {}, 1.0),
        ("coin_flip", "1e99999999999", "0.5", {}, 0.0),
        ("number_sorting", '["1", "2.0"]', "['1.0', '2.0']", {"direction": "ascending"}, 1.0),
        ("number_sorting", "['1', '2.9']", "['1.0', '2.0']", {"direction": "ascending"}, 0.0),  # within 1 in the package
        ("bitwise_arithmetic", "-155797439", "-0x94947bf", {"problem": "exec('1')"}, 1.0),
        ("game_of_life", "[[0,0],[0,0]]", "[[0,0],[0,1]]", {}, 0.0),
        ("game_of_life", "[[0, 0], [0, 1]]", "[[0,0],[0,1]]", {}, 1.0),
        ("gsm_symbolic", "$1,687.50", "1687.5", {}, 1.0),
        ("gsm_symbolic", "12 13 1687.5", "1687.5", {}, 0.0),
        ("knights_knaves", "B is a knave and A is a knight", "A is a knight, and B is a knave.", {}, 1.0),
        ("knights_knaves", "A is a knight, and B is a knight", "A is a knight, and B is a knave.", {}, 0.0),
        ("n_queens", "Q _ \n_ Q", "_ Q\nQ _", {"valid_answers": ["Q _\n_ Q", "_ Q\nQ _"]}, 1.0),
        ("rearc", "1  2\n3 4", "1 2\n3 4", {"output": [[9]]}, 1.0),
    ],
)  # fmt: skip
def test_where_the_package_is_not_followed(
    dataset: str, answer: str, expected: str, metadata: dict[str, Any], reward: float
) -> None:
    assert score(dataset, answer, expected, **metadata) == reward


@pytest.mark.parametrize("dataset", sorted(PLAIN | EXACT))
def test_silence_earns_nothing(dataset: str) -> None:
    for expected in ("", "x", "[]"):
        assert score(dataset, "", expected) == 0.0
        assert score(dataset, " \n", expected) == 0.0


@installed
def test_metadata_that_fits_no_scorer_is_the_rows_fault() -> None:
    parsed = ENVIRONMENT.check_row({**row("fraction_simplification", "x"), "task_id": "t1"})
    assert ENVIRONMENT.verify(parsed, said("<answer>y</answer>")).reward < 1.0  # it reads none, and says 0.01 to all
    parsed = ENVIRONMENT.check_row({**row("word_ladder", "A,B"), "task_id": "t1"})
    with pytest.raises(
        RowError, match=r"'reasoning_gym' task 't1': field 'metadata': no task of dataset 'word_ladder': KeyError"
    ):
        ENVIRONMENT.verify(parsed, said("<answer>y,z</answer>"))


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is not there."""
    for name in [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    from environments.reasoning_gym.verifier import _scorer

    _scorer.cache_clear()
    yield
    _scorer.cache_clear()


@pytest.mark.usefixtures("absent")
def test_without_the_package_what_needs_it_says_how_to_get_it() -> None:
    ENVIRONMENT.prepare()
    assert score("gcd", "12", "12") == 1.0  # needs no package
    with pytest.raises(OmnigymError, match=r"pip install 'omnigym\[reasoning-gym\]' \(reasoning-gym==0.1.25\)"):
        next(ENVIRONMENT.generate(1, 0, "train"))
    with pytest.raises(FailureError, match="pip install") as error:
        score("dice", "1/2", "1/3")
    assert not error.value.failure.retryable
    result = CliRunner().invoke(cli.build(), ["env", "list"])
    assert result.exit_code == 0 and "reasoning_gym" in result.output


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("environments.reasoning_gym.verifier.VERSION", "9.9")
    if has_reasoning_gym():
        with pytest.raises(OmnigymError, match=f"read at 9.9, installed is {VERSION}"):
            next(ENVIRONMENT.generate(1, 0, "train"))


def test_settings_name_datasets_that_can_be_had() -> None:
    for name, message in (
        ("countdown", "parse_expr"),
        ("gdc", "did you mean 'gcd'"),
        ("list_functions", "not the same twice"),
    ):
        with pytest.raises(ValueError, match=message):
            ReasoningGymSettings(datasets=[name])


def test_importing_the_environment_imports_no_package() -> None:
    program = "import sys, environments.reasoning_gym.server; print(sorted({'reasoning_gym', 'matplotlib', 'sympy'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(cli.__file__).parents[1]
    )
    assert found.stdout.strip() == "[]"


@installed
@pytest.mark.conformance
def test_recorded_scores(
    conformance: Path, conform: Callable[[str, dict[str, bool], str], None], tmp_path: Path
) -> None:
    file = "reasoning_gym.jsonl"
    cases = [json.loads(line) for line in (conformance / file).read_text().splitlines()]
    assert len(cases) == 128
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests = [{**case["entry"], "response": {"output": said(case["model_text"])}} for case in cases]
    lines = [json.dumps({"id": case["id"], "request": request}) for case, request in zip(cases, requests, strict=True)]
    given.write_text("\n".join(lines))
    result = CliRunner().invoke(cli.build(), ["verify", "reasoning_gym", "--cases", str(given), "--out", str(out)])
    assert result.exit_code == 0, result.output
    got = {line["id"]: line.get("reward") for line in map(json.loads, out.read_text().splitlines())}
    agrees = {case["id"]: got[case["id"]] == pytest.approx(case["expected"]["reward"], abs=1e-9) for case in cases}
    conform(file, agrees, "environments/reasoning_gym/README.md")
