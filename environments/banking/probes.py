"""Conversations that try to earn the reward without doing the task."""

from __future__ import annotations

from typing import Any, get_args

import orjson

from environments.banking.desk import RefusalReason, TransferReason
from environments.banking.verifier import BankingRow, declared_tools
from gym_servers.protocol import Item

Calls = list[tuple[str, dict[str, Any]]]


def made(calls: Calls, text: str = "Done. Is there anything else?") -> list[Item]:
    """Output items of `calls`, as if each had been made, and a last message."""
    items: list[Item] = []
    for number, (name, arguments) in enumerate(calls):
        call_id, written = f"call_{number}", orjson.dumps(arguments).decode()
        items.append({"type": "function_call", "call_id": call_id, "name": name, "arguments": written})
        items.append({"type": "function_call_output", "call_id": call_id, "output": "ok"})
    return [*items, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def probes(row: BankingRow) -> dict[str, list[Item]]:
    """By name; none may earn full reward on `row`."""
    right: Calls = [(call.name, call.arguments) for call in row.ground_truth]
    changes = [call for call in right if call[0] != "verify_identity"]
    refusals: Calls = [("record_refusal", {"reason_code": code}) for code in get_args(RefusalReason)]
    transfers: Calls = [("transfer_to_human", {"reason_code": code}) for code in get_args(TransferReason)]
    customer = next(iter(row.database.customers))
    found = {
        "claims_that_it_is_done": made([]),
        "only_checks_the_identity": made(right[:-1]),
        "guesses_code_words": made(
            [("verify_identity", {"customer_id": customer, "code_word": word}) for word in ("?", "a", "b", "c", "d")]
        ),
        "calls_that_were_never_made": [item for item in made(right) if item["type"] != "function_call_output"],
    }
    if "record_refusal" in declared_tools(row):
        found["refuses_for_every_reason"] = made(refusals)
        found["refuses_and_does_it_too"] = made([*(one for one in refusals if one not in right), *right])
    if "transfer_to_human" in declared_tools(row):
        found["hands_over_for_every_reason"] = made([one for one in transfers if one not in right] + transfers)
    if len(changes) < len(right):
        found["acts_before_the_identity_check"] = made([*changes, right[0]])
    if undo := undone(row, right):
        found["does_too_much_and_undoes_it"] = made(undo)
    return found


def undone(row: BankingRow, right: Calls) -> Calls:
    """`right` with a card blocked and unblocked in between, where there is one to do it with; without a trace in the database."""
    if not {"block_card", "unblock_card"} <= declared_tools(row):
        return []
    named = {arguments.get("card_id") for _, arguments in right}
    for card_id, card in row.database.cards.items():
        mine = row.database.accounts[card.account_id].customer_id == right[0][1].get("customer_id")
        if card.status == "active" and card_id not in named and mine:
            again: Calls = [
                ("block_card", {"card_id": card_id, "reason": "customer_request"}),
                ("unblock_card", {"card_id": card_id}),
            ]
            return [right[0], *again, *right[1:]]
    return []
