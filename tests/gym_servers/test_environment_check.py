"""`omnigym env check`: what is installed passes it, and every way of being wrong is told by the check that is meant for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gym_servers import cli, registry
from gym_servers.checks.bench import Finding
from gym_servers.checks.run import check_environment
from gym_servers.commands.env_new import write

CHECKS = [
    "files",
    "OpenAPI",
    "tasks",
    "same tasks again",
    "train and held-out",
    "gold answers",
    "probes: hacks",
    "probes: guesses",
    "malformed rows",
    "malformed outputs",
    "cases",
    "same verdict again",
    "speed",
]


@pytest.mark.parametrize("name", registry.environment_names())
def test_what_is_installed_passes(name: str) -> None:
    # Half of the usual limit: cases that run into it, again and again in fresh workers, are most of the time.
    findings = asyncio.run(check_environment(name, tasks=8, overrides={"verify_cpu_seconds": 1.0}))
    assert [finding.check for finding in findings if finding.check != "simulated user"] == CHECKS
    assert [finding for finding in findings if finding.result == "wrong"] == []


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.PATH_VARIABLE, "")


def changed(folder: Path, name: str, kind: str, file: str, old: str, new: str) -> Path:
    """A new environment, spoilt at one place."""
    write(name, kind, folder / name)
    path = folder / name / name / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return registry.add_folder(folder / name)


RIGHT = "right = answer == expected.lower()"
SPOILT: list[tuple[str, str, str, str, str, str]] = [
    # kind, file, what stands there, what then does, the check, what it says
    ("single_turn", "verifier.py", RIGHT, "right = True", "probes: hacks", "'all options' earns the full reward on 8 of 8"),
    ("single_turn", "verifier.py", RIGHT, "right = expected in answer", "probes: hacks", "'every word in one answer'"),
    ("single_turn", "verifier.py", "text.rpartition(MARK)", "text.partition(MARK)", "cases", "case 'corrected'"),
    ("single_turn", "server.py", "strip_reasoning(final_text(output))", "final_text(output)", "cases", "in reasoning only"),
    ("single_turn", "server.py", "message(f\"{MARK} {row.expected_answer}\")", "message('?')", "gold answers", "train task 0"),
    ("single_turn", "server.py", "return self.verify(row, output)", "return self.verify(row, output).model_copy(update={'parts': {}})", "same verdict again", "and then"),
    ("single_turn", "verifier.py", RIGHT, RIGHT + "\n    import random\n    answer += str(random.random())", "same verdict again", "and then"),
    ("single_turn", "verifier.py", RIGHT, RIGHT + "\n    answer += str(hash(answer))", "same verdict again", "and then"),
    ("single_turn", "generator.py", "{seed}|{split}", "{hash(split)}", "same tasks again", "another process makes other tasks"),
    ("single_turn", "generator.py", "|{seed}|{split}|{k}", "|{seed}|{split}|{k}|{n}", "same tasks again", "differ from those of"),
    ("single_turn", "generator.py", "words = r.sample(WORDS[split].split(), length)", "words, r = r.sample(WORDS['train'].split(), length), random.Random(0)\n        words = WORDS['train'].split()[:length]", "train and held-out", "a prompt of both"),
    ("single_turn", "generator.py", "/ (LENGTHS[-1] - LENGTHS[0]), 2)", "* 0 + 0.5, 2)", "tasks", "'difficulty' takes 1 values"),
    ("single_turn", "generator.py", '"name": "spoilt', '"name": "other', "tasks", "'agent_ref.name' is not"),
    ("single_turn", "server.py", "words: list[str]", "words: object = None", "cases", "case 'field of a wrong type'"),
    ("single_turn", "server.py", "expected_answer: str = Field(min_length=1)", "expected_answer: Any", "malformed rows", "field 'expected_answer' is a number"),
    ("single_turn", "server.py", "final_text(output))[-self", "output[-1]['content'][0]['text'])[-self", "malformed outputs", "breaks the verifier"),
    ("single_turn", "environment.yaml", "description: Find", "describes: Find", "files", "no 'description'"),
    ("single_turn", "cases.jsonl", '"error": "field \'', '"error": "feld \'', "cases", "expected an error that says 'feld"),
    ("single_turn", "server.py", "return self.verify(row, output)", "return 1.0", "gold answers", "`quick` returned a float: return a Verdict"),
    ("single_turn", "server.py", "return self.verify(row, output)", "return self.verify(row, output).model_copy(update={'parts': {'words': {1, 2}}})", "gold answers", "verdict.parts cannot be written as JSON"),
    ("tools", "verifier.py", "0.0 if wrong else 1.0", "0.0 if len(wrong) > 1 else 1.0", "probes: hacks", "'nothing' earns the full reward"),
    ("tools", "tools.py", '"""Order more of an item; they are in stock at once."""', "", "OpenAPI", "no summary"),
    ("tools", "tools.py", "state.stock[item] += quantity", "state.stock[item] = quantity", "gold answers", "in a session"),
    ("conversation", "user.py", "self.opening.format(item=self.item)", "''", "simulated user", "turn 1: neither words nor the end"),
    ("conversation", "user.py", '"?" in said[-1].content', 'said[-1].content[0] == "?"', "simulated user", "IndexError"),
    ("tools", "generator.py", '"tools": [tool.declaration() for tool in TOOLS],', "", "tasks", "'responses_create_params.tools' is empty"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SPOILT)))
def test_what_is_spoilt_is_told(number: int, tmp_path: Path) -> None:
    kind, file, old, new, check, said = SPOILT[number]
    name = f"spoilt_{number}"
    changed(tmp_path, name, kind, file, old, new)
    findings = {finding.check: finding for finding in asyncio.run(check_environment(name, tasks=8, workers=1))}
    assert findings[check].result == "wrong", findings
    assert said in findings[check].detail


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tools", "shop"),
        ("conversation", "desk"),
        ("conversation", "user"),
        ("single_turn", "row"),
        ("tools", "stateful"),
    ],
)
def test_a_name_that_a_template_uses_itself_is_no_matter(kind: str, name: str, tmp_path: Path) -> None:
    write(name, kind, tmp_path / name)
    registry.add_folder(tmp_path / name)
    findings = asyncio.run(check_environment(name, tasks=4, workers=1))
    assert [finding for finding in findings if finding.result == "wrong"] == []


def test_without_a_generator_or_cases_the_rest_is_told(tmp_path: Path) -> None:
    changed(tmp_path, "no_tasks", "single_turn", "server.py", "    def generate(", "    def generates(")
    changed(tmp_path, "no_cases", "single_turn", "verifier.py", MARK := "Answer:", MARK)
    (tmp_path / "no_cases" / "no_cases" / "cases.jsonl").unlink()
    told = {name: asyncio.run(check_environment(name, tasks=8, workers=1))[-1] for name in ("no_tasks", "no_cases")}
    assert (
        told["no_tasks"] == Finding("stopped", "wrong", told["no_tasks"].detail)
        and "no generator" in told["no_tasks"].detail
    )
    assert "cases.jsonl" in told["no_cases"].detail and told["no_cases"].result == "wrong"


def test_the_command_prints_a_table_or_json_and_exits_1(tmp_path: Path) -> None:
    folder = changed(tmp_path, "exit_status", "single_turn", "verifier.py", RIGHT, "right = True")

    def run(*options: str) -> Any:
        command = ["env", "check", "exit_status", "--path", str(folder), "--tasks", "6", *options]
        return CliRunner().invoke(cli.build(), command)

    result = run("--json")
    assert result.exit_code == 1
    wrong = {row["check"] for row in json.loads(result.stdout) if row["result"] == "wrong"}
    assert {"probes: hacks", "cases"} <= wrong
    result = run()
    assert result.exit_code == 1 and "wrong" in result.stdout and "same verdict again" in result.stdout
    good = folder / "exit_status" / "verifier.py"
    good.write_text(good.read_text().replace("right = True", RIGHT))
    # another process, since this one has the spoilt module
    import subprocess
    import sys

    program = "from gym_servers.cli import main; main()"
    command = [sys.executable, "-c", program, "env", "check", "exit_status", "--path", str(folder), "--tasks", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


JUDGED = '''
from gym_servers.environment import AwaitedEnvironment, Row, Settings
from gym_servers.protocol import Failure, FailureError, Verdict, final_text


class JudgedSettings(Settings):
    judge_url: str = ""


class Judged(AwaitedEnvironment):
    name = "judged"
    settings_type = JudgedSettings

    def quick(self, row, output):
        return None if final_text(output) else Verdict(reward=0.0, explanation="Empty.")

    async def verify_awaited(self, row, output):
        raise FailureError(Failure(kind="judge_failed", message="no judge_url is set"))

    def gold(self, row):
        return [{"type": "message", "role": "assistant", "content": "yes"}]

    def generate(self, n, seed, split):
        for k in range(n):
            turns = [{"role": "user", "content": f"{split} {seed} {k}"}]
            yield {"responses_create_params": {"input": turns}, "difficulty": k / n, "agent_ref": {"name": "judged"}}
'''  # fmt: skip


def test_what_needs_a_judge_that_is_not_there_is_skipped_by_name_and_with_one_that_fails_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "judged"
    (folder / "judged").mkdir(parents=True)
    (folder / "judged" / "__init__.py").write_text(JUDGED)
    (folder / "pyproject.toml").write_text('[project.entry-points."omnigym.environments"]\njudged = "judged:Judged"\n')
    (folder / "judged" / "cases.jsonl").write_text(
        '{"id": "a", "request": {"response": {"output": []}}, "expected": {"reward": 0.0}}\n'
    )
    registry.add_folder(folder)
    found = {f.check: f for f in asyncio.run(check_environment("judged", tasks=8, workers=1))}
    assert found["gold answers"].result == "skipped" and "no judge_url is set" in found["gold answers"].detail
    assert found["probes: hacks"].result == "ok" and "verdicts need who is not there" in found["probes: hacks"].detail
    given = {"judge_url": "http://127.0.0.1:9/v1/responses"}
    found = {f.check: f for f in asyncio.run(check_environment("judged", tasks=8, workers=1, overrides=given))}
    assert found["gold answers"].result == "wrong"


GROUPED = """
from gym_servers.environment import GroupEnvironment, Row
from gym_servers.protocol import Verdict, final_text


class GroupedRow(Row):
    answer: str


class Grouped(GroupEnvironment):
    name = "grouped"
    row_type = GroupedRow

    def verify_group(self, row, rollouts):
        texts = [final_text(rollout.output) for rollout in rollouts]
        best = max(len(text) for text in texts)
        return [Verdict(reward=float(RIGHT), explanation="...") for text in texts]

    def gold(self, row):
        return [{"type": "message", "role": "assistant", "content": row.answer}]

    def generate(self, n, seed, split):
        for k in range(n):
            turns = [{"role": "user", "content": f"{split} {seed} {k}"}]
            row = {"responses_create_params": {"input": turns}, "answer": f"right {split} {k}", "difficulty": k / n}
            yield {**row, "agent_ref": {"name": "grouped"}}
"""


@pytest.mark.parametrize(("right", "result"), [("text == row.answer", "ok"), ("len(text) == best", "wrong")])
def test_probes_of_a_group_environment_are_compared_with_the_gold_answer(
    right: str, result: str, tmp_path: Path
) -> None:
    name = f"grouped_{result}"
    folder = tmp_path / name
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(GROUPED.replace("RIGHT", right).replace('"grouped"', f'"{name}"'))
    (folder / "pyproject.toml").write_text(
        f'[project.entry-points."omnigym.environments"]\n{name} = "{name}:Grouped"\n'
    )
    answers = [{"response": {"output": [{"type": "message", "content": text}]}} for text in ("right", "no")]
    request = {"task": {"answer": "right"}, "rollouts": answers}
    case = {"id": "a", "request": request, "expected": {"rewards": [1.0, 0.0]}}
    malformed = {"id": "b", "request": {**request, "task": {}}, "expected": {"error": "field 'answer'"}}
    (folder / name / "cases.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (case, malformed)))
    registry.add_folder(folder)
    found = {f.check: f for f in asyncio.run(check_environment(name, tasks=8, workers=1))}
    assert found["gold answers"].result == "ok" and found["cases"].result == "ok", found
    assert found["probes: hacks"].result == result, found["probes: hacks"]
