"""The desk's tools. They carry out what is possible, not only what the policy allows: to keep to it is the agent's task.

What is impossible (no such card, already blocked) is refused with a message that says what to do instead, and leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field

from environments.banking.bank import MAX_ATTEMPTS, Bank, Card, Dispute, FraudReport, Transfer
from gym_servers.tools import Tool, ToolRefused

Id = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Dollars = Annotated[float, Field(gt=0, le=10_000_000, allow_inf_nan=False, description="in dollars")]
RefusalReason = Literal[
    "identity_not_verified",
    "not_the_customer",
    "card_unsafe",
    "too_late",
    "transaction_pending",
    "limit_too_high",
    "account_too_new",
    "balance_owed",
]
TransferReason = Literal["business_customer", "open_dispute", "out_of_scope"]


def dollars(cents: int) -> float:
    """As tools show money."""
    return cents / 100


def cents(amount: float) -> int:
    """Of an amount in dollars."""
    return round(amount * 100)


def plain(text: str) -> str:
    """A code word without what a speaker adds to it: case, outer space and quotes."""
    return text.strip().strip("'\"").casefold()


def find_customer(state: Bank, name: Text, date_of_birth: date) -> list[str]:
    """Find customer numbers by full name and date of birth."""
    wanted = " ".join(name.casefold().split())
    return [
        customer_id
        for customer_id, one in state.data.customers.items()
        if " ".join(one.name.casefold().split()) == wanted and one.date_of_birth == date_of_birth
    ]


def verify_identity(state: Bank, customer_id: Id, code_word: Text) -> dict[str, Any]:
    """Check the code word that the user gave. Needed before anything of the customer is read or changed."""
    customer = state.customer(customer_id)
    if state.attempts >= MAX_ATTEMPTS:
        raise ToolRefused(f"{MAX_ATTEMPTS} wrong code words were given: nobody can be verified in this conversation")
    if plain(code_word) != plain(customer.code_word):
        state.attempts += 1
        return {"verified": False, "attempts_left": MAX_ATTEMPTS - state.attempts}
    state.verified.add(customer_id)
    return {"verified": True, "name": customer.name, "kind": customer.kind}


def list_accounts(state: Bank, customer_id: Id) -> list[dict[str, Any]]:
    """List a customer's accounts with balances in dollars."""
    state.customer(customer_id)
    state.look("list_accounts", customer_id)
    return [
        {"account_id": key, **one.model_dump(mode="json", exclude={"customer_id"}), "balance": dollars(one.balance)}
        for key, one in state.data.accounts.items()
        if one.customer_id == customer_id
    ]


def list_cards(state: Bank, customer_id: Id) -> list[dict[str, Any]]:
    """List a customer's cards: id, account, last four digits, status, why it is blocked, daily limit in dollars."""
    state.customer(customer_id)
    state.look("list_cards", customer_id)
    return [
        {"card_id": key, **one.model_dump(mode="json"), "daily_limit": dollars(one.daily_limit)}
        for key, one in state.data.cards.items()
        if state.owner(one.account_id) == customer_id
    ]


def list_transactions(state: Bank, account_id: Id) -> list[dict[str, Any]]:
    """List an account's transactions, amounts in dollars."""
    state.look("list_transactions", state.owner(account_id))
    return [
        {"transaction_id": key, **one.model_dump(mode="json", exclude={"account_id"}), "amount": dollars(one.amount)}
        for key, one in state.data.transactions.items()
        if one.account_id == account_id
    ]


def list_disputes(state: Bank, customer_id: Id) -> list[dict[str, Any]]:
    """List a customer's open disputes and fraud reports."""
    state.customer(customer_id)
    state.look("list_disputes", customer_id)
    rows: list[tuple[str, Dispute | FraudReport]] = [
        *state.data.disputes.items(),
        *state.data.fraud_reports.items(),
    ]
    return [
        {"id": key, **one.model_dump(mode="json")}
        for key, one in rows
        if state.owner(state.transaction(one.transaction_id).account_id) == customer_id
    ]


def block_card(
    state: Bank, card_id: Id, reason: Literal["lost", "stolen", "fraud", "customer_request"]
) -> dict[str, Any]:
    """Block a card, so that nobody can pay with it."""
    card = state.card(card_id)
    if card.status != "active":
        raise ToolRefused(f"card '{card_id}' is {card.status} already: there is nothing to block")
    state.change("block_card", state.owner(card.account_id), card_id=card_id, reason=reason)
    card.status, card.block_reason = "blocked", reason
    return {"card_id": card_id, "status": "blocked"}


def unblock_card(state: Bank, card_id: Id) -> dict[str, Any]:
    """Make a blocked card work again."""
    card = state.card(card_id)
    if card.status != "blocked":
        raise ToolRefused(f"card '{card_id}' is {card.status}, not blocked: there is nothing to unblock")
    state.change("unblock_card", state.owner(card.account_id), card_id=card_id)
    card.status, card.block_reason = "active", None
    return {"card_id": card_id, "status": "active"}


def replace_card(state: Bank, card_id: Id) -> dict[str, Any]:
    """Close a blocked card and send a new one to the customer's address."""
    card, new_id = state.card(card_id), f"{card_id}-R"
    if card.status != "blocked":
        raise ToolRefused(f"card '{card_id}' is {card.status}: only a blocked card is replaced, block it first")
    state.change("replace_card", state.owner(card.account_id), card_id=card_id)
    card.status = "closed"
    last4 = f"{(int(card.last4) * 7 + 1) % 10_000:04d}" if card.last4.isdigit() else card.last4
    state.data.cards[new_id] = Card(
        account_id=card.account_id, last4=last4, daily_limit=card.daily_limit, replaces=card_id
    )
    return {"card_id": new_id, "last4": last4, "status": "active"}


def set_card_limit(state: Bank, card_id: Id, daily_limit: Dollars) -> dict[str, Any]:
    """Set what can be paid with a card in a day."""
    card, limit = state.card(card_id), cents(daily_limit)
    if card.status == "closed":
        raise ToolRefused(f"card '{card_id}' is closed: it has no limit to set")
    if card.daily_limit == limit:
        raise ToolRefused(f"the daily limit of card '{card_id}' is {daily_limit:g} already")
    state.change("set_card_limit", state.owner(card.account_id), card_id=card_id, daily_limit=limit)
    card.daily_limit = limit
    return {"card_id": card_id, "daily_limit": dollars(limit)}


def open_dispute(
    state: Bank, transaction_id: Id, reason: Literal["not_received", "wrong_amount", "charged_twice", "cancelled"]
) -> dict[str, Any]:
    """Dispute a charge with the merchant."""
    transaction, dispute_id = state.transaction(transaction_id), f"D-{transaction_id}"
    if dispute_id in state.data.disputes:
        raise ToolRefused(f"transaction '{transaction_id}' is disputed already")
    state.change("open_dispute", state.owner(transaction.account_id), transaction_id=transaction_id, reason=reason)
    state.data.disputes[dispute_id] = Dispute(transaction_id=transaction_id, reason=reason)
    return {"dispute_id": dispute_id}


def report_fraud(state: Bank, transaction_id: Id) -> dict[str, Any]:
    """Report a transaction that the customer did not make."""
    transaction, report_id = state.transaction(transaction_id), f"F-{transaction_id}"
    if report_id in state.data.fraud_reports:
        raise ToolRefused(f"transaction '{transaction_id}' is reported already")
    state.change("report_fraud", state.owner(transaction.account_id), transaction_id=transaction_id)
    state.data.fraud_reports[report_id] = FraudReport(transaction_id=transaction_id)
    return {"report_id": report_id}


def transfer_money(state: Bank, from_account: Id, to_account: Id, amount: Dollars) -> dict[str, Any]:
    """Move money from one account to another of the bank."""
    source, target = state.account(from_account, open_only=True), state.account(to_account, open_only=True)
    moved = cents(amount)
    if from_account == to_account:
        raise ToolRefused("from_account and to_account are the same")
    if moved < 1 or source.balance < moved:
        raise ToolRefused(f"account '{from_account}' holds {dollars(source.balance):.2f}: {amount:g} cannot be moved")
    state.change("transfer_money", source.customer_id, from_account=from_account, to_account=to_account, amount=moved)
    source.balance -= moved
    target.balance += moved
    pair = f"M-{from_account}-{to_account}"
    number = sum(key.startswith(f"{pair}-") for key in state.data.transfers) + 1
    state.data.transfers[f"{pair}-{number}"] = Transfer(from_account=from_account, to_account=to_account, amount=moved)
    return {"transfer_id": f"{pair}-{number}", "balance": dollars(source.balance)}


def close_account(state: Bank, account_id: Id) -> dict[str, Any]:
    """Close an account and its cards. Its balance must be 0."""
    account = state.account(account_id, open_only=True)
    if account.balance:
        raise ToolRefused(
            f"account '{account_id}' has a balance of {dollars(account.balance):.2f}: only one with 0 can be closed"
        )
    state.change("close_account", account.customer_id, account_id=account_id)
    account.status = "closed"
    for card in state.data.cards.values():
        if card.account_id == account_id:
            card.status = "closed"
    return {"account_id": account_id, "status": "closed"}


def update_address(state: Bank, customer_id: Id, street: Text, city: Text, postcode: Text) -> dict[str, Any]:
    """Change a customer's address."""
    customer = state.customer(customer_id)
    state.change("update_address", customer_id, customer_id=customer_id, street=street, city=city, postcode=postcode)
    customer.street, customer.city, customer.postcode = street, city, postcode
    return {"customer_id": customer_id, "street": street, "city": city, "postcode": postcode}


def record_refusal(state: Bank, reason_code: RefusalReason) -> str:
    """Record that the user's request is refused because of the policy, and why."""
    state.decide("record_refusal", reason_code)
    return "recorded: now tell the user, and why"


def transfer_to_human(state: Bank, reason_code: TransferReason) -> str:
    """Hand the conversation over to a person. It ends with this."""
    state.decide("transfer_to_human", reason_code)
    state.ended = True
    return "a person takes over"


_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    find_customer,
    verify_identity,
    list_accounts,
    list_cards,
    list_transactions,
    list_disputes,
    block_card,
    unblock_card,
    replace_card,
    set_card_limit,
    open_dispute,
    report_fraud,
    transfer_money,
    close_account,
    update_address,
    record_refusal,
    transfer_to_human,
)
TOOLS = {tool.name: tool for tool in map(Tool.of, _FUNCTIONS)}
