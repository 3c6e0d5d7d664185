"""Generated tasks: deterministic, graded, disjoint between the splits, and consistent with the policy that they show."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import pytest

from environments.banking.policy import ACCOUNT_DAYS, DISPUTE_DAYS, LIMITS, TODAY
from environments.banking.server import Banking
from environments.banking.words import HELDOUT, TRAIN

BANK = Banking()
TRAINING, OTHERS = (list(BANK.generate(400, 3, split)) for split in ("train", "heldout"))  # type: ignore[arg-type]
BOTH = TRAINING + OTHERS


def test_a_row_is_a_function_of_its_number_seed_and_split() -> None:
    assert list(BANK.generate(40, 3, "train")) == TRAINING[:40]
    assert list(BANK.generate(40, 4, "train")) != TRAINING[:40]
    assert len({json.dumps(row["database"]) for row in BOTH}) == len(BOTH)


def told(row: dict[str, Any]) -> list[str]:
    return [text for goal in row["user"]["goals"] for text in (goal["opening"], *goal["facts"].values())]


def test_splits_share_no_names_words_amounts_or_phrases() -> None:
    for key in ("first", "last", "codes", "merchants", "streets", "cities", "loans", "told"):
        assert not set(getattr(TRAIN, key)) & set(getattr(HELDOUT, key)), key
    for one, other in ((TRAIN.openings, HELDOUT.openings), (TRAIN.phrases, HELDOUT.phrases)):
        assert one.keys() == other.keys()
        assert not {text for texts in one.values() for text in texts} & {t for texts in other.values() for t in texts}
    for rows, parity in ((TRAINING, 0), (OTHERS, 1)):
        for row in rows:
            amounts = [one["amount"] for one in row["database"]["transactions"].values()]
            amounts += [100 * c["arguments"]["amount"] for c in row["ground_truth"] if "amount" in c["arguments"]]
            assert {round(amount) % 2 for amount in amounts} <= {parity}
            limits = [c["arguments"]["daily_limit"] for c in row["ground_truth"] if "daily_limit" in c["arguments"]]
            assert {limit // 100 % 2 for limit in limits} <= {parity}
    assert not {text for row in TRAINING for text in told(row)} & {text for row in OTHERS for text in told(row)} - {
        text for row in BOTH for goal in row["user"]["goals"] for text in goal["facts"].values()
    }


def test_difficulty_is_graded_and_follows_the_work() -> None:
    assert all(0 <= row["difficulty"] <= 1 for row in BOTH)
    assert [row["difficulty"] // 0.25 for row in TRAINING[:4]] == [0, 1, 2, 3]
    for row in BOTH:
        tools, calls = row["responses_create_params"]["tools"], row["ground_truth"]
        if row["level"] == 0:
            assert (len(tools), len(calls)) == (2, 2)
            who = calls[0]["arguments"]
            opening = row["user"]["goals"][0]["opening"]
            told = [*who.values(), calls[1]["arguments"]["card_id"]]
            assert all(value in opening for value in told)  # all that is needed is told
        elif row["level"] >= 2:
            assert len(tools) == 17
            assert "customer_id" not in row["user"]["goals"][0]["opening"]


def test_nothing_is_left_to_fill_in() -> None:
    for row in BOTH:
        assert "{" not in "".join(told(row)) + row["policy"] + json.dumps(row["customer_scenario"])[1:-1]


@pytest.mark.parametrize("row", BOTH[:200], ids=lambda row: row["task_id"])
def test_the_ground_truth_follows_the_policy(row: dict[str, Any]) -> None:
    """By the policy's words, checked again from the database alone."""
    data = row["database"]
    codes = {call["arguments"].get("reason_code") for call in row["ground_truth"]}
    if "identity_not_verified" in codes:
        assert "code_word" not in row["user"]["facts"]
    for call in row["ground_truth"]:
        arguments = call["arguments"]
        match call["name"]:
            case "unblock_card":
                assert data["cards"][arguments["card_id"]]["block_reason"] in ("customer_request", "wrong_pin")
            case "set_card_limit":
                account = data["accounts"][data["cards"][arguments["card_id"]]["account_id"]]
                assert 100 * arguments["daily_limit"] <= LIMITS[account["tier"]]
                assert TODAY - date.fromisoformat(account["opened"]) >= timedelta(days=ACCOUNT_DAYS)
            case "open_dispute":
                transaction = data["transactions"][arguments["transaction_id"]]
                assert transaction["status"] == "posted"
                assert TODAY - date.fromisoformat(transaction["date"]) <= timedelta(days=DISPUTE_DAYS)
            case "close_account":
                disputed = {one["transaction_id"] for one in data["disputes"].values()}
                assert arguments["account_id"] not in {data["transactions"][t]["account_id"] for t in disputed}
            case "update_address":
                assert data["customers"][arguments["customer_id"]].get("kind") != "business"


def test_what_is_asked_for_can_be_told_from_the_rest() -> None:
    """Card endings, and amounts of charges, are of one record each."""
    for row in BOTH:
        data = row["database"]
        endings = [card["last4"] for card in data["cards"].values()]
        assert len(endings) == len(set(endings))
        amounts = [one["amount"] for one in data["transactions"].values()]
        assert len(amounts) == len(set(amounts))
        mine = [
            account["kind"]
            for account in data["accounts"].values()
            if account["customer_id"] == row["user"]["facts"].get("customer_id")
        ]
        assert len(mine) == len(set(mine))
