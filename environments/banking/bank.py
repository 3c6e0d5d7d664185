"""The bank's database, and the state of one conversation at its desk.

Ids that the system gives are made of what they stand for (the dispute of transaction T5 is D-T5), so the same work done in another
order leaves the same database, and nothing has to be renamed before two are compared. Money is in cents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gym_servers.tools import ToolRefused

BlockReason = Literal["lost", "stolen", "fraud", "customer_request", "wrong_pin"]
MAX_ATTEMPTS = 3
"""Wrong answers to the identity check; after them nobody is verified any more, so the code word cannot be guessed."""


class Record(BaseModel):
    """A row of a table."""

    model_config = ConfigDict(extra="forbid")


class Customer(Record):
    name: str
    date_of_birth: date
    code_word: str
    kind: Literal["personal", "business"] = "personal"
    street: str
    city: str
    postcode: str


class Account(Record):
    """balance: in cents; below 0 the customer owes it."""

    customer_id: str
    kind: Literal["current", "savings"] = "current"
    tier: Literal["standard", "gold"] = "standard"
    opened: date
    balance: int = 0
    status: Literal["open", "closed"] = "open"


class Card(Record):
    """daily_limit: in cents. replaces: the card in whose place this one was sent."""

    account_id: str
    last4: str
    status: Literal["active", "blocked", "closed"] = "active"
    block_reason: BlockReason | None = None
    daily_limit: int = 100_000
    replaces: str | None = None


class Transaction(Record):
    """amount: in cents, above 0 where it was paid out."""

    account_id: str
    date: date
    merchant: str
    amount: int
    status: Literal["posted", "pending"] = "posted"


class Dispute(Record):
    transaction_id: str
    reason: str


class FraudReport(Record):
    transaction_id: str


class Transfer(Record):
    from_account: str
    to_account: str
    amount: int


class Database(Record):
    """Tables by id. decisions: what was refused, or handed to a person, by its reason."""

    customers: dict[str, Customer] = Field(min_length=1)
    accounts: dict[str, Account] = {}
    cards: dict[str, Card] = {}
    transactions: dict[str, Transaction] = {}
    disputes: dict[str, Dispute] = {}
    fraud_reports: dict[str, FraudReport] = {}
    transfers: dict[str, Transfer] = {}
    decisions: dict[str, str] = {}

    @model_validator(mode="after")
    def _whole(self) -> Database:
        """Raises ValueError where a row speaks of one that is not there."""
        links = (
            ("accounts", "customer_id", self.customers),
            ("cards", "account_id", self.accounts),
            ("transactions", "account_id", self.accounts),
            ("disputes", "transaction_id", self.transactions),
            ("fraud_reports", "transaction_id", self.transactions),
        )
        for table, key, there in links:
            for name, record in getattr(self, table).items():
                if getattr(record, key) not in there:
                    raise ValueError(f"{table}.{name}.{key}: there is no '{getattr(record, key)}'")
        return self


@dataclass
class Bank:
    """The state of one conversation. changes: every one that was made, (tool, arguments), undone or not. violations: of the policy's
    rule on identity. decided_unseen: a request was refused or handed over while nobody was verified. user: what the simulated user
    remembers. ended: nothing can be done any more, a person has taken over."""

    data: Database
    user: Any = None
    verified: set[str] = field(default_factory=set)
    attempts: int = 0
    changes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    decided_unseen: bool = False
    ended: bool = False

    def customer(self, customer_id: str) -> Customer:
        """Raises ToolRefused."""
        found = self.data.customers.get(customer_id)
        if found is None:
            raise ToolRefused(
                f"there is no customer '{customer_id}': ask for the customer number, or use find_customer"
            )
        return found

    def account(self, account_id: str, *, open_only: bool = False) -> Account:
        """Raises ToolRefused."""
        found = self.data.accounts.get(account_id)
        if found is None:
            raise ToolRefused(f"there is no account '{account_id}': list_accounts shows a customer's account ids")
        if open_only and found.status == "closed":
            raise ToolRefused(f"account '{account_id}' is closed")
        return found

    def card(self, card_id: str) -> Card:
        """Raises ToolRefused."""
        found = self.data.cards.get(card_id)
        if found is None:
            raise ToolRefused(f"there is no card '{card_id}': list_cards shows a customer's card ids")
        return found

    def transaction(self, transaction_id: str) -> Transaction:
        """Raises ToolRefused."""
        found = self.data.transactions.get(transaction_id)
        if found is None:
            raise ToolRefused(
                f"there is no transaction '{transaction_id}': list_transactions shows an account's transaction ids"
            )
        return found

    def owner(self, account_id: str) -> str:
        """The customer id of an account."""
        return self.account(account_id).customer_id

    def look(self, tool: str, customer_id: str) -> None:
        """Note that something of a customer is read or changed. Raises ToolRefused once the conversation is a person's."""
        if self.ended:
            raise ToolRefused("a person has taken over this conversation: nothing more can be done here")
        if customer_id not in self.verified:
            self.violations.append(f"{tool} for {customer_id} before the identity was verified")

    def change(self, tool: str, customer_id: str, /, **arguments: Any) -> None:
        """Note a change that is about to be made."""
        self.look(tool, customer_id)
        self.changes.append((tool, arguments))

    def decide(self, tool: str, reason: str) -> None:
        """Note a refusal or a hand-over."""
        if self.ended:
            raise ToolRefused("a person has taken over this conversation: nothing more can be done here")
        key = f"{tool}/{reason}"
        if key in self.data.decisions:
            raise ToolRefused(f"{tool} with the reason '{reason}' is recorded already")
        self.data.decisions[key] = reason
        self.decided_unseen |= not self.verified
        self.changes.append((tool, {"reason_code": reason}))
