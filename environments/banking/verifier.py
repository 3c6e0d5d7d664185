"""The verdict on a conversation at the desk: a pure function of the initial database, the calls, and the ground truth.

Full reward where the final database equals that of the ground truth, the changes on the way were the same (so nothing was done and
undone), and nothing of a customer was read, changed or decided before the identity was verified. Order does not count beyond what the database
shows, nor do case and spaces of texts.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from environments.banking.bank import Bank, Database
from environments.banking.desk import TOOLS
from environments.banking.user import Script
from gym_servers.environment import Row
from gym_servers.protocol import Item, RowError, Verdict, call_arguments, function_calls
from gym_servers.tools import ToolRefused


class Call(BaseModel):
    """A call of the ground truth."""

    model_config = ConfigDict(extra="forbid")
    name: str
    arguments: dict[str, Any] = {}


class Scenario(BaseModel):
    """What a simulated user of a published row is told; all of it is text for a model."""

    model_config = ConfigDict(extra="allow")
    customer_persona: str | None = None
    reason_for_contact: str | None = None
    customer_details: str | None = None
    unknown_info: str | None = None
    task_instructions: str | None = None


class BankingRow(Row):
    """A task. user: the scripted user; a row without one needs `customer_scenario` and a model that plays the user."""

    database: Database
    ground_truth: list[Call] = Field(min_length=1)
    customer_scenario: Scenario = Scenario()
    user: Script | None = None
    policy: str = ""


def start(row: BankingRow) -> Bank:
    """The state at the start of an episode; nothing of it is shared with the row."""
    return Bank(row.database.model_copy(deep=True))


def apply(bank: Bank, name: str, arguments: dict[str, Any]) -> Any:
    """The result of a call. Raises ToolRefused, after which `bank` is as it was before the call."""
    tool = TOOLS.get(name)
    if tool is None:
        raise ToolRefused(f"there is no tool '{name}'. Tools: {', '.join(TOOLS)}")
    parsed = tool.parse(arguments)
    return tool.function(bank, **parsed)


def expected(row: BankingRow) -> Bank:
    """The state after the ground truth. Raises RowError where it cannot be carried out, or changes nothing."""
    bank = start(row)
    for number, call in enumerate(row.ground_truth):
        try:
            apply(bank, call.name, call.arguments)
        except ToolRefused as error:
            raise RowError(
                f"environment 'banking' task '{row.task_id or '?'}': field 'ground_truth.{number}': {error}"
            ) from None
    if not bank.changes:  # doing nothing would earn the reward
        raise RowError(
            f"environment 'banking' task '{row.task_id or '?'}': field 'ground_truth': it changes nothing: "
            "a request that the policy forbids wants record_refusal or transfer_to_human"
        )
    return bank


def declared_tools(row: BankingRow) -> set[str]:
    """Names of the tools that the row shows to the model."""
    tools = row.responses_create_params.get("tools")
    return {str(tool.get("name")) for tool in tools if isinstance(tool, dict)} if isinstance(tools, list) else set()


def replay(row: BankingRow, output: list[Item]) -> Bank:
    """The state after those calls of `output` that were made, which are those with an output: what a turn that was cut off asked for
    never happened."""
    bank, allowed = start(row), declared_tools(row)
    made = {str(item.get("call_id")) for item in output if item.get("type") == "function_call_output"}
    for call in function_calls(output):
        name, arguments = str(call.get("name")), call_arguments(call)
        if str(call.get("call_id")) in made and name in allowed and arguments is not None:
            with contextlib.suppress(ToolRefused):
                apply(bank, name, arguments)
    return bank


def _plain(value: Any) -> Any:
    """`value` with its texts in lower case and without what does not count in them."""
    if isinstance(value, str):
        return " ".join(value.casefold().replace(",", " ").replace(".", " ").split())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _counted(changes: Iterable[tuple[str, dict[str, Any]]]) -> Counter[str]:
    return Counter(
        f"{tool}({', '.join(f'{key}={value}' for key, value in sorted(_plain(arguments).items()))})"
        for tool, arguments in changes
    )


def verdict(row: BankingRow, bank: Bank) -> Verdict:
    """The verdict on the state at the end of an episode. Raises RowError."""
    want = expected(row)
    same = _plain(bank.data.model_dump(mode="json")) == _plain(want.data.model_dump(mode="json"))
    made, asked = _counted(bank.changes), _counted(want.changes)
    missing, extra = sorted((asked - made).elements()), sorted((made - asked).elements())
    violations = list(bank.violations)
    if bank.decided_unseen and not want.decided_unseen:  # whether the policy forbids it was guessed
        violations.append("a request was refused or handed over before the identity was verified")
    right = same and not missing and not extra and not violations
    if right:
        explanation = "the database is as it should be, by the changes that the policy asks for"
    elif violations:
        explanation = f"forbidden: {violations[0]}"
    elif extra:
        explanation = f"not asked for: {extra[0]}"
    elif missing:
        explanation = f"not done: {missing[0]}"
    else:
        explanation = "the changes are right, their order is not: the database differs"
    parts = {"database": same, "missing": missing[:10], "extra": extra[:10], "violations": violations[:10]}
    return Verdict(reward=float(right), explanation=explanation[:500], parts=parts)
