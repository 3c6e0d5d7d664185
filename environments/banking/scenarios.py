"""What users want, one function a family: it puts into the world what the wish is about, and says what the right calls are."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from environments.banking.policy import ACCOUNT_DAYS, DISPUTE_DAYS, LIMITS, TODAY
from environments.banking.words import Words

Rows = dict[str, dict[str, Any]]
SPOKEN_REASONS = {
    "not_received": "never delivered",
    "wrong_amount": "the wrong amount",
    "charged_twice": "charged twice",
    "cancelled": "for something that I had cancelled",
}


@dataclass
class World:
    """A bank with one customer who calls, and others. by_id: the user says ids, as only easy tasks have it."""

    r: random.Random
    words: Words
    by_id: bool
    tables: dict[str, Rows] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    customer_id: str = ""
    current: str = ""

    def __post_init__(self) -> None:
        self.ids = self.r.sample(range(100, 1000), 120)
        self.last4 = self.r.sample(range(1000, 10_000), 60)
        self.dollars = self.r.sample(range(20, 300), 60)
        self.tables = {name: {} for name in ("customers", "accounts", "cards", "transactions", "disputes")}
        self.numbers = self.r.sample(range(self.words.first_id, self.words.first_id + 300), 12)
        self.people = self.r.sample([f"{a} {b}" for a in self.words.first for b in self.words.last], 12)
        self.customer_id = self.customer()
        self.current = self.account("current")

    @property
    def me(self) -> dict[str, Any]:
        """The row of the customer who calls."""
        return self.tables["customers"][self.customer_id]

    def place(self) -> tuple[str, str, str]:
        """Street, city, postcode; the house number's parity is the split's."""
        street = f"{2 * self.r.randrange(1, 60) + self.words.parity} {self.r.choice(self.words.streets)}"
        return street, self.r.choice(self.words.cities), f"{self.r.randrange(10_000, 99_999)}"

    def customer(self) -> str:
        """A customer's id."""
        customer_id, (street, city, postcode) = f"C{self.numbers.pop()}", self.place()
        born = TODAY - timedelta(days=self.r.randrange(20 * 365, 80 * 365))
        self.tables["customers"][customer_id] = {
            "name": self.people.pop(),
            "date_of_birth": born.isoformat(),
            "code_word": self.r.choice(self.words.codes),
            "street": street,
            "city": city,
            "postcode": postcode,
        }
        return customer_id

    def account(self, kind: str, *, balance: int | None = None, days: int = 0, tier: str = "", of: str = "") -> str:
        """An account's id. days: its age, 0 for any that is old enough. balance: in cents."""
        account_id = f"A{self.ids.pop()}"
        age = days or self.r.randrange(ACCOUNT_DAYS + 10, 3000)
        self.tables["accounts"][account_id] = {
            "customer_id": of or self.customer_id,
            "kind": kind,
            "tier": tier or self.r.choice(list(LIMITS)),
            "opened": (TODAY - timedelta(days=age)).isoformat(),
            "balance": self.cents() if balance is None else balance,
        }
        return account_id

    def card(self, account: str = "", status: str = "active", reason: str | None = None) -> str:
        """A card's id; of the current account where none is named."""
        card_id = f"K{self.ids.pop()}"
        self.tables["cards"][card_id] = {
            "account_id": account or self.current,
            "last4": str(self.last4.pop()),
            "status": status,
            "block_reason": reason,
            "daily_limit": 50_000 + 20_000 * self.r.randrange(3),
        }
        return card_id

    def cents(self) -> int:
        """An amount in cents that no other of this world has; its parity is the split's."""
        return 100 * self.dollars.pop() + 2 * self.r.randrange(50) + self.words.parity

    def transaction(self, days: int, *, account: str = "", status: str = "posted") -> tuple[str, str, int]:
        """(id, merchant, cents) of a charge `days` ago."""
        transaction_id, merchant, amount = f"T{self.ids.pop()}", self.r.choice(self.words.merchants), self.cents()
        self.tables["transactions"][transaction_id] = {
            "account_id": account or self.current,
            "date": (TODAY - timedelta(days=days)).isoformat(),
            "merchant": merchant,
            "amount": amount,
            "status": status,
        }
        return transaction_id, merchant, amount

    def ending(self, card_id: str) -> str:
        """A card as its holder calls it."""
        return card_id if self.by_id else f"the one ending in {self.tables['cards'][card_id]['last4']}"

    def others(self, n: int) -> None:
        """Records that nobody asks for: other customers, more cards and charges of this one."""
        for _ in range(n):
            other = self.account("current", of=self.customer())
            self.card(other)
            self.transaction(self.r.randrange(1, 50), account=other)
            self.card()
            self.transaction(self.r.randrange(1, 50))


@dataclass
class Wish:
    """family: whose words open it. fields: of those words. facts: told when asked. calls: right ones, without the identity check.
    tools: that it may take. needs_identity: whether the policy wants the identity check for it."""

    family: str
    calls: list[tuple[str, dict[str, Any]]]
    tools: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    needs_identity: bool = True


def money(cents: int) -> str:
    """As people say it."""
    return f"{cents // 100}" if cents % 100 == 0 else f"{cents / 100:.2f}"


def refuse(reason: str) -> list[tuple[str, dict[str, Any]]]:
    """The one right call where the policy forbids a wish."""
    return [("record_refusal", {"reason_code": reason})]


def hand_over(reason: str) -> list[tuple[str, dict[str, Any]]]:
    """The one right call where a person is to take over."""
    return [("transfer_to_human", {"reason_code": reason})]


def about_card(
    world: World, family: str, card: str, calls: list[tuple[str, Any]], tools: tuple[str, ...], **more: str
) -> Wish:
    """A wish about `card`."""
    facts = {
        "card": world.ending(card),
        **{key: value for key, value in more.items() if key in ("limit", "reason", "new_card")},
    }
    if "reason" in facts:
        facts["reason"] = f"The reason is {facts['reason'].replace('_', ' ')}."
    return Wish(family, calls, (*tools, "list_cards"), {"card": card, **more}, facts)


def block_card(w: World) -> Wish:
    card, reason = w.card(), w.r.choice(("lost", "stolen", "customer_request"))
    calls = [("block_card", {"card_id": card, "reason": reason})]
    return about_card(w, "block_card", card, calls, ("block_card",), reason=reason)


def lost_card(w: World) -> Wish:
    card, reason = w.card(), w.r.choice(("lost", "stolen"))
    calls = [("block_card", {"card_id": card, "reason": reason}), ("replace_card", {"card_id": card})]
    tools = ("block_card", "replace_card")
    return about_card(w, "lost_card", card, calls, tools, reason=reason, new_card="Yes, I want a new card.")


def unblock_card(w: World) -> Wish:
    card = w.card(status="blocked", reason=w.r.choice(("customer_request", "wrong_pin")))
    return about_card(w, "unblock_card", card, [("unblock_card", {"card_id": card})], ("unblock_card",))


def unblock_unsafe(w: World) -> Wish:
    card = w.card(status="blocked", reason=w.r.choice(("lost", "stolen", "fraud")))
    return about_card(w, "unblock_card", card, refuse("card_unsafe"), ("unblock_card",))


def _limit(w: World, low: int, high: int) -> int:
    """Dollars in [low, high], an even or odd number of hundreds as the split's."""
    return 100 * (2 * w.r.randrange(low // 200, high // 200) + w.words.parity)


def raise_limit(w: World) -> Wish:
    card = w.card()
    limit = _limit(w, 1200, 2000)
    calls = [("set_card_limit", {"card_id": card, "daily_limit": limit})]
    return about_card(w, "raise_limit", card, calls, ("set_card_limit", "list_accounts"), limit=str(limit))


def limit_too_high(w: World) -> Wish:
    tier = w.tables["accounts"][w.current]["tier"]
    top = LIMITS[tier] // 100
    tools = ("set_card_limit", "list_accounts")
    limit = _limit(w, top + 200, top + 2000)
    return about_card(w, "raise_limit", w.card(), refuse("limit_too_high"), tools, limit=str(limit))


def account_too_new(w: World) -> Wish:
    account = w.account("savings", days=w.r.randrange(5, ACCOUNT_DAYS - 5))
    card, tools = w.card(account), ("set_card_limit", "list_accounts")
    return about_card(w, "raise_limit", card, refuse("account_too_new"), tools, limit=str(_limit(w, 1200, 2000)))


def _dispute(w: World, days: int, status: str = "posted", refusal: str = "") -> Wish:
    transaction, merchant, cents = w.transaction(days, status=status)
    reason = w.r.choice(list(SPOKEN_REASONS))
    calls = refuse(refusal) if refusal else [("open_dispute", {"transaction_id": transaction, "reason": reason})]
    facts = {"merchant": merchant, "amount": f"{money(cents)} dollars", "reason": f"It was {SPOKEN_REASONS[reason]}."}
    fields = {"merchant": merchant, "amount": money(cents), "reason": SPOKEN_REASONS[reason]}
    return Wish("dispute", calls, ("open_dispute", "list_accounts", "list_transactions"), fields, facts)


def dispute(w: World) -> Wish:
    return _dispute(w, w.r.randrange(2, DISPUTE_DAYS - 5))


def dispute_too_late(w: World) -> Wish:
    return _dispute(w, w.r.randrange(DISPUTE_DAYS + 5, 300), refusal="too_late")


def dispute_pending(w: World) -> Wish:
    return _dispute(w, 1, status="pending", refusal="transaction_pending")


def fraud(w: World) -> Wish:
    card, (transaction, merchant, cents) = w.card(), w.transaction(w.r.randrange(1, 20))
    calls: list[tuple[str, dict[str, Any]]] = [
        ("block_card", {"card_id": card, "reason": "fraud"}),
        ("report_fraud", {"transaction_id": transaction}),
        ("replace_card", {"card_id": card}),
    ]
    tools = ("block_card", "report_fraud", "replace_card", "list_cards", "list_accounts", "list_transactions")
    fields = {"merchant": merchant, "amount": money(cents), "card": card}
    facts = {
        "merchant": merchant,
        "amount": f"{money(cents)} dollars",
        "card": w.ending(card),
        "new_card": "Yes, I need a new card.",
        "reason": "I did not make that payment.",
    }
    return Wish("fraud", calls, tools, fields, facts)


def move_money(w: World) -> Wish:
    savings = w.account("savings")
    amount = w.tables["accounts"][w.current]["balance"] // 300 * 100 + 2 * w.r.randrange(1, 50) + w.words.parity
    arguments = {"from_account": w.current, "to_account": savings, "amount": amount / 100}
    fields = {"amount": money(amount), "account": "my current account", "target_account": "my savings account"}
    facts = {
        "amount": f"{money(amount)} dollars",
        "account": "the current account",
        "target_account": "the savings account",
    }
    return Wish("move_money", [("transfer_money", arguments)], ("transfer_money", "list_accounts"), fields, facts)


def _close(family: str, w: World, calls: list[tuple[str, Any]], target: bool = False) -> Wish:
    fields = {"account": "my savings account", "target_account": "my current account"}
    facts = {"account": "the savings account"}
    if target:
        facts["target_account"] = "the current account"
    return Wish(family, calls, ("close_account", "transfer_money", "list_accounts", "list_disputes"), fields, facts)


def close_empty(w: World) -> Wish:
    return _close("close_empty", w, [("close_account", {"account_id": w.account("savings", balance=0)})])


def close_full(w: World) -> Wish:
    balance = w.cents()
    savings = w.account("savings", balance=balance)
    moved = {"from_account": savings, "to_account": w.current, "amount": balance / 100}
    return _close("close_full", w, [("transfer_money", moved), ("close_account", {"account_id": savings})], target=True)


def close_owing(w: World) -> Wish:
    w.account("savings", balance=-w.cents())
    return _close("close_empty", w, refuse("balance_owed"))


def close_disputed(w: World) -> Wish:
    savings = w.account("savings", balance=0)
    transaction, _, _ = w.transaction(w.r.randrange(2, 40), account=savings)
    w.tables["disputes"][f"D-{transaction}"] = {"transaction_id": transaction, "reason": "not_received"}
    return _close("close_empty", w, hand_over("open_dispute"))


def address(w: World) -> Wish:
    street, city, postcode = w.place()
    new = {"customer_id": w.customer_id, "street": street, "city": city, "postcode": postcode}
    spoken = f"{street}, {city}, {postcode}"
    return Wish("address", [("update_address", new)], ("update_address",), {"address": spoken}, {"address": spoken})


def business_address(w: World) -> Wish:
    w.me["kind"] = "business"
    wish = address(w)
    wish.calls = hand_over("business_customer")
    return wish


def third_party(w: World) -> Wish:
    wish = block_card(w)
    wish.family, wish.calls, wish.needs_identity = "third_party", refuse("not_the_customer"), False
    wish.fields["name"] = w.me["name"]
    wish.facts["reason"] = "The card is lost."
    return wish


def out_of_scope(w: World) -> Wish:
    fields = {"loan": w.r.choice(w.words.loans)}
    return Wish("out_of_scope", hand_over("out_of_scope"), (), fields, needs_identity=False)


Family = Callable[[World], Wish]
EASY: tuple[Family, ...] = (block_card, unblock_card, raise_limit)
SIMPLE: tuple[Family, ...] = (block_card, unblock_card, unblock_unsafe, raise_limit, limit_too_high, address, dispute)
ALL: tuple[Family, ...] = (
    *(block_card, lost_card, unblock_card, unblock_unsafe, raise_limit, limit_too_high, account_too_new),
    *(dispute, dispute_too_late, dispute_pending, fraud, move_money, close_empty, close_full, close_owing),
    *(close_disputed, address, business_address, third_party, out_of_scope),
)
FIRST_OF_TWO: tuple[Family, ...] = (
    unblock_card,
    raise_limit,
    lost_card,
    dispute,
    address,
    unblock_unsafe,
    dispute_too_late,
)
SECOND_OF_TWO: tuple[Family, ...] = (
    block_card,
    fraud,
    limit_too_high,
    move_money,
    close_full,
    close_owing,
    out_of_scope,
)
