"""Verdicts on calls: the cases, every family of scenarios, what the policy forbids, bad rows, and any calls at all."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.banking.bank import Bank
from environments.banking.desk import TOOLS
from environments.banking.probes import made
from environments.banking.server import Banking
from environments.banking.verifier import BankingRow, apply, expected, replay, start, verdict
from gym_servers.protocol import RowError, Verdict
from gym_servers.registry import load_environment
from gym_servers.tools import ToolRefused

BANK = Banking()
CASES = [json.loads(line) for line in (Banking.folder() / "cases.jsonl").read_text().splitlines()]
ROWS = [row for split in ("train", "heldout") for row in BANK.generate(240, 11, split)]  # type: ignore[arg-type]
FAMILIES = sorted({row["family"] for row in ROWS})

DATABASE: dict[str, Any] = {
    "customers": {
        "C1": {
            "name": "Ann Lee",
            "date_of_birth": "1980-05-01",
            "code_word": "Oak",
            "street": "1 Low Road",
            "city": "Ely",
            "postcode": "12345",
        },
        "C2": {
            "name": "Bo Ray",
            "date_of_birth": "1970-01-31",
            "code_word": "elm",
            "street": "2 Low Road",
            "city": "Ely",
            "postcode": "12345",
        },
    },
    "accounts": {
        "A1": {"customer_id": "C1", "opened": "2020-01-01", "balance": 10_050},
        "A2": {"customer_id": "C1", "kind": "savings", "opened": "2020-01-01"},
        "A3": {"customer_id": "C2", "opened": "2020-01-01", "balance": 500},
    },
    "cards": {
        "K1": {"account_id": "A1", "last4": "0001"},
        "K2": {"account_id": "A1", "last4": "0002", "status": "blocked", "block_reason": "wrong_pin"},
        "K3": {"account_id": "A3", "last4": "0003"},
    },
    "transactions": {
        "T1": {"account_id": "A1", "date": "2026-03-01", "merchant": "Shop", "amount": 2000},
        "T2": {"account_id": "A1", "date": "2026-03-02", "merchant": "Shop", "amount": 2000},
    },
}
WHO = ("verify_identity", {"customer_id": "C1", "code_word": "oak"})
Calls = list[tuple[str, dict[str, Any]]]


def row_of(*truth: tuple[str, dict[str, Any]], **fields: Any) -> BankingRow:
    raw = {
        "responses_create_params": {"input": [], "tools": [tool.declaration() for tool in TOOLS.values()]},
        "database": DATABASE,
        "ground_truth": [{"name": name, "arguments": arguments} for name, arguments in truth],
        **fields,
    }
    row = BANK.check_row(raw)
    assert isinstance(row, BankingRow)
    return row


def graded(truth: Calls, calls: Calls) -> Verdict:
    return BANK.verify(row_of(*truth), made(calls))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_cases(case: dict[str, Any]) -> None:
    request = {key: value for key, value in case["request"].items() if key != "response"}
    output = case["request"]["response"]["output"]
    if "error" in case["expected"]:
        with pytest.raises(RowError, match=case["expected"]["error"]):
            BANK.verify(BANK.check_row(request), output)
    else:
        assert BANK.verify(BANK.check_row(request), output).reward == case["expected"]["reward"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_earned_by_its_gold_answer_and_by_no_probe(family: str) -> None:
    for raw in [row for row in ROWS if row["family"] == family][:3]:
        row = BANK.check_row(raw)
        gold = BANK.gold(row)
        assert gold is not None
        assert BANK.verify(row, gold).reward == 1.0, raw["task_id"]
        assert BANK.verify(row, []).reward == 0.0
        spoken = [item for item in gold if item["type"] == "message"]
        assert BANK.verify(row, spoken).reward == 0.0, "the words alone"
        for name, output in BANK.probes(row).items():
            assert BANK.verify(row, output).reward == 0.0, (raw["task_id"], name)


def test_there_is_every_kind_of_ending_and_probe() -> None:
    calls = {(call["name"], call["arguments"].get("reason_code")) for row in ROWS for call in row["ground_truth"]}
    assert {name for name, _ in calls} >= set(TOOLS) - {name for name in TOOLS if name.startswith(("list_", "find_"))}
    assert len([reason for name, reason in calls if name == "record_refusal"]) == 8
    assert len([reason for name, reason in calls if name == "transfer_to_human"]) == 3
    probes = {name for row in ROWS for name in BANK.probes(BANK.check_row(row))}
    assert len(probes) == 9


BLOCK = ("block_card", {"card_id": "K1", "reason": "lost"})


@pytest.mark.parametrize(
    ("calls", "reward", "why"),
    [
        ([WHO, BLOCK], 1.0, "as it should be"),
        ([WHO, ("list_cards", {"customer_id": "C1"}), BLOCK], 1.0, "as it should be"),
        ([WHO, ("find_customer", {"name": "bo ray", "date_of_birth": "1970-01-31"}), BLOCK], 1.0, "as it should be"),
        ([BLOCK], 0.0, "block_card for C1 before the identity was verified"),
        ([BLOCK, WHO], 0.0, "block_card for C1 before the identity was verified"),
        ([("list_cards", {"customer_id": "C1"}), WHO, BLOCK], 0.0, "list_cards for C1 before"),
        ([WHO, ("list_cards", {"customer_id": "C2"}), BLOCK], 0.0, "list_cards for C2 before"),
        ([WHO, ("list_transactions", {"account_id": "A3"}), BLOCK], 0.0, "list_transactions for C2 before"),
        ([WHO], 0.0, "not done: block_card"),
        ([WHO, ("block_card", {"card_id": "K1", "reason": "stolen"})], 0.0, "not asked for: block_card"),
        ([WHO, ("block_card", {"card_id": "K2", "reason": "lost"}), BLOCK], 1.0, "as it should be"),  # it was refused
        ([WHO, ("unblock_card", {"card_id": "K2"}), BLOCK], 0.0, "not asked for: unblock_card"),
        ([WHO, BLOCK, ("record_refusal", {"reason_code": "card_unsafe"})], 0.0, "not asked for: record_refusal"),
        ([WHO, BLOCK, ("unblock_card", {"card_id": "K1"})], 0.0, "not asked for: unblock_card"),
        ([WHO, BLOCK, ("unblock_card", {"card_id": "K1"}), BLOCK], 0.0, "not asked for: block_card"),
    ],
)
def test_one_block(calls: Calls, reward: float, why: str) -> None:
    found = graded([WHO, BLOCK], calls)
    assert (found.reward, why in found.explanation) == (reward, True), found.explanation


def test_wrong_code_words_lock_the_conversation() -> None:
    wrong = ("verify_identity", {"customer_id": "C1", "code_word": "ash"})
    assert graded([WHO, BLOCK], [wrong, wrong, WHO, BLOCK]).reward == 1.0
    assert graded([WHO, BLOCK], [wrong, wrong, wrong, WHO, BLOCK]).reward == 0.0


def test_order_counts_only_where_the_database_shows_it() -> None:
    one, two = (("open_dispute", {"transaction_id": t, "reason": "not_received"}) for t in ("T1", "T2"))
    assert graded([WHO, one, two], [WHO, two, one]).reward == 1.0
    move = ("transfer_money", {"from_account": "A1", "to_account": "A2", "amount": 100.5})
    close = ("close_account", {"account_id": "A1"})
    assert graded([WHO, move, close], [WHO, move, close]).reward == 1.0
    assert graded([WHO, move, close], [WHO, close, move]).reward == 0.0
    half = ("transfer_money", {"from_account": "A1", "to_account": "A2", "amount": 50.25})
    assert graded([WHO, move], [WHO, half, half]).reward == 0.0
    assert graded([WHO, move], [WHO, ("transfer_money", {**move[1], "amount": "100.50"})]).reward == 1.0


def test_texts_are_compared_without_case_commas_and_spaces() -> None:
    new = {"customer_id": "C1", "street": "9 High Street", "city": "Bath", "postcode": "54321"}
    spelled = {**new, "street": " 9  high street,", "city": "BATH"}
    assert graded([WHO, ("update_address", new)], [WHO, ("update_address", spelled)]).reward == 1.0
    assert graded([WHO, ("update_address", new)], [WHO, ("update_address", {**new, "street": "9 High"})]).reward == 0.0


def test_a_refusal_is_recorded_after_the_identity_check_where_the_policy_wants_one() -> None:
    refusal = ("record_refusal", {"reason_code": "card_unsafe"})
    assert graded([WHO, refusal], [WHO, refusal]).reward == 1.0
    guessed = graded([WHO, refusal], [refusal, WHO])
    assert guessed.reward == 0.0 and "before the identity was verified" in guessed.explanation
    third = ("record_refusal", {"reason_code": "not_the_customer"})
    assert graded([third], [third]).reward == graded([third], [WHO, third]).reward == 1.0
    assert graded([third], [WHO]).reward == 0.0


def test_nothing_is_done_after_a_hand_over() -> None:
    hand_over = ("transfer_to_human", {"reason_code": "out_of_scope"})
    assert graded([hand_over], [hand_over, WHO, BLOCK]).reward == 1.0  # the desk refused it
    assert graded([WHO, BLOCK], [WHO, hand_over, BLOCK]).reward == 0.0


def test_calls_without_outputs_and_tools_that_the_row_does_not_show_count_for_nothing() -> None:
    row = row_of(WHO, BLOCK)
    output = made([WHO, BLOCK])
    assert BANK.verify(row, output).reward == 1.0
    assert BANK.verify(row, output[:-2]).reward == 0.0  # the last call's output is missing
    for tools in ([TOOLS["verify_identity"].declaration()], "junk", [7], None):
        few = row_of(WHO, BLOCK, responses_create_params={"input": [], "tools": tools})
        assert BANK.verify(few, output).reward == 0.0


@pytest.mark.parametrize("call_id", [None, 7, [], {"a": 1}])
def test_odd_items_are_graded_too(call_id: Any) -> None:
    output = made([WHO, BLOCK])
    for item in output:
        if "call_id" in item:
            item["call_id"] = call_id
    assert BANK.verify(row_of(WHO, BLOCK), output).reward == 1.0
    output[0]["name"], output[0]["arguments"] = [], {}
    assert BANK.verify(row_of(WHO, BLOCK), output).reward == 0.0


def _parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from _parts(value[key], (*path, key))


def test_bad_rows_are_refused_by_name() -> None:
    good = row_of(WHO, BLOCK).model_dump(mode="json")
    good["user"] = next(iter(ROWS))["user"]
    for field in ("database", "ground_truth"):
        with pytest.raises(RowError, match=f"field '{field}'"):
            BANK.check_row({key: value for key, value in good.items() if key != field})
    refused = 0
    for path in _parts({key: good[key] for key in ("database", "ground_truth", "user", "customer_scenario")}):
        for junk in (7.5, "\x00", [], {}, None, ["x"]):
            row = copy.deepcopy(good)
            place = row
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            try:
                BANK.seed(BANK.check_row(row))
            except RowError as error:
                refused += 1
                assert "environment 'banking'" in str(error) and "field '" in str(error)
    assert refused > 500


IDS = [*DATABASE["customers"], *DATABASE["accounts"], *DATABASE["cards"], *DATABASE["transactions"], "K2-R", "", "?"]
VALUES = st.one_of(
    st.sampled_from([*IDS, "oak", "lost", "fraud", "card_unsafe", "out_of_scope", "1980-05-01", "Ann Lee"]),
    st.floats(allow_nan=True),
    st.integers(),
    st.text(max_size=5),
    st.none(),
)


@st.composite
def any_calls(draw: st.DrawFn) -> Calls:
    calls: Calls = []
    for _ in range(draw(st.integers(0, 12))):
        name = draw(st.sampled_from(list(TOOLS)))
        fields = list(TOOLS[name].arguments.model_fields)
        arguments = {field: draw(VALUES) for field in fields if draw(st.integers(0, 20))}
        for field in fields:
            if field.endswith("_id") or field.endswith("_account"):
                arguments[field] = draw(st.sampled_from(IDS))
            if field in ("amount", "daily_limit"):
                arguments[field] = draw(st.sampled_from([100.5, 50, 0.001, -1, 1e300, "5"]))
        calls.append((name, arguments))
    return calls


@settings(max_examples=150)
@given(any_calls(), st.booleans())
def test_any_calls_are_replayed_to_the_same_state(calls: Calls, verified: bool) -> None:
    """And money is neither made nor lost, no id is lost, and a refused call changes nothing."""
    row = row_of(WHO, BLOCK)
    calls = [WHO, *calls] if verified else calls
    bank = start(row)
    made_calls: Calls = []
    for name, arguments in calls:
        before = pickle.dumps(bank)
        try:
            apply(bank, name, arguments)
        except ToolRefused as error:
            assert str(error)
            assert pickle.loads(before) == bank
        made_calls.append((name, arguments))
        bank = pickle.loads(pickle.dumps(bank))
    finite = all(isinstance(v, str | int) or v is None or abs(v) < 1e308 for _, a in made_calls for v in a.values())
    if finite and all(abs(v) < 2**63 for _, a in made_calls for v in a.values() if isinstance(v, int)):
        assert replay(row, made(made_calls)) == bank
    assert sum(one.balance for one in bank.data.accounts.values()) == 10_550
    assert set(bank.data.cards) >= set(DATABASE["cards"])
    assert verdict(row, bank).reward in (0.0, 1.0)
    assert (verdict(row, bank).reward == 1.0) <= (bank.data.cards["K1"].block_reason == "lost")


def test_the_row_is_not_changed_by_what_happens() -> None:
    row = row_of(WHO, BLOCK)
    before = row.model_dump()
    expected(row)
    replay(row, made([WHO, BLOCK]))
    assert row.model_dump() == before


def test_ten_thousand_sessions_are_small() -> None:
    rows = [row for row in ROWS if row["level"] == 3]
    sizes = [len(pickle.dumps(BANK.seed(BANK.check_row(row)), pickle.HIGHEST_PROTOCOL)) for row in rows]
    assert max(sizes) * 10_000 < 200e6


def test_settings_are_those_of_the_file() -> None:
    assert load_environment("banking").settings == BANK.settings
    assert isinstance(BANK.seed(BANK.check_row(ROWS[0])), Bank)
