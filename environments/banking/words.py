"""What generated tasks are made of: nothing of one split stands in the other."""

from __future__ import annotations

from dataclasses import dataclass

from gym_servers.environment import Split


@dataclass(frozen=True)
class Words:
    """Names, places and phrases of a split. parity: of its amounts, in units of their step. first_id: of its customers.

    openings: by family, sentences with the fields that the scenario fills in. told, asked: how facts are given.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]
    codes: tuple[str, ...]
    merchants: tuple[str, ...]
    streets: tuple[str, ...]
    cities: tuple[str, ...]
    loans: tuple[str, ...]
    parity: int
    first_id: int
    openings: dict[str, tuple[str, ...]]
    told: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]


TRAIN = Words(
    first=("Ada", "Ben", "Clara", "David", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena"),
    last=(
        "Abbott",
        "Brandt",
        "Costa",
        "Diaz",
        "Eriksen",
        "Fischer",
        "Gupta",
        "Hansen",
        "Ito",
        "Jensen",
        "Kaya",
        "Lopez",
    ),
    codes=("maple", "harbor", "violet", "copper", "meadow", "falcon", "ginger", "saddle", "timber", "walnut"),
    merchants=(
        "Blue Door Books",
        "City Gym",
        "Fern Electronics",
        "Green Cab",
        "Hillside Hotel",
        "Juno Shoes",
        "Kiosk 24",
    ),
    streets=("Mill Lane", "Station Road", "Oak Street", "River Walk", "Church Hill", "Market Square"),
    cities=("Ashford", "Brookton", "Carlow", "Dunmore", "Eastham"),
    loans=("a car loan of 9,000 dollars", "a mortgage for a flat", "some advice on buying shares"),
    parity=0,
    first_id=100,
    openings={
        "block_card": (
            "Please block my {card}. The reason is {reason}.",
            "I need you to block my {card}, reason: {reason}.",
        ),
        "lost_card": (
            "My {card} is {reason}. Please block it and send me a new one.",
            "I want a new card, since my {card} is {reason}. Block the old one.",
        ),
        "unblock_card": ("Please unblock my {card}.", "My {card} is blocked, and I would like to use it again."),
        "raise_limit": (
            "Please set the daily limit of my {card} to {limit} dollars.",
            "I would like to be able to pay {limit} dollars a day with my {card}.",
        ),
        "dispute": (
            "I want to dispute the {amount} dollars that {merchant} took, because it was {reason}.",
            "{merchant} charged {amount} dollars. It was {reason}, and I dispute it.",
        ),
        "fraud": (
            "I did not make the payment of {amount} dollars to {merchant} with my {card}. That is fraud.",
            "Somebody paid {amount} dollars at {merchant} with my {card}, and it was not me.",
        ),
        "move_money": (
            "Please move {amount} dollars from {account} to {target_account}.",
            "I would like {amount} dollars of {account} on {target_account}.",
        ),
        "close_empty": ("Please close {account}.", "I no longer need {account}: close it."),
        "close_full": (
            "Please close {account} and move what is on it to {target_account}.",
            "I want {account} closed. The money is to go to {target_account}.",
        ),
        "address": ("I have moved. My new address is {address}.", "Please change my address to {address}."),
        "third_party": (
            "I am calling for my mother, {name}. Please block her {card}, it is lost.",
            "It is about my wife's {card}. Her name is {name}. Please block it, she lost it.",
        ),
        "out_of_scope": ("I would like to have {loan}.", "Can you arrange {loan} for me?"),
    },
    told=("My customer number is {customer_id} and my code word is {code_word}.",),
    phrases={
        "known": ("My {fact} is {value}.", "The {fact} is {value}."),
        "unknown": ("I don't remember the {fact}.", "I have no idea what my {fact} is."),
        "yes": ("Yes, please.", "Yes, go ahead."),
        "lost": ("I don't understand. {restated}", "Sorry? {restated}"),
        "bye": ("No, that is all. Thank you, goodbye.", "Thanks, that was everything. Bye."),
    },
)

HELDOUT = Words(
    first=("Maya", "Nils", "Olga", "Pablo", "Quinn", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Yusuf"),
    last=(
        "Moreau",
        "Novak",
        "Okafor",
        "Petrov",
        "Quist",
        "Rossi",
        "Silva",
        "Tanaka",
        "Ueda",
        "Vogel",
        "Weber",
        "Young",
    ),
    codes=("anchor", "bamboo", "candle", "dahlia", "ember", "fjord", "granite", "hazel", "indigo", "juniper"),
    merchants=(
        "Lotus Spa",
        "Metro Market",
        "Nova Games",
        "Orchard Cafe",
        "Pine Furniture",
        "Quick Print",
        "Reef Travel",
    ),
    streets=("Abbey Court", "Bridge Street", "Castle Way", "Dock Road", "Elm Grove", "Forge Lane"),
    cities=("Fairview", "Glenrock", "Harwick", "Inverby", "Kelham"),
    loans=("a loan for a boat", "a second mortgage", "a savings plan with shares"),
    parity=1,
    first_id=500,
    openings={
        "block_card": (
            "Could you block my {card}? Reason: {reason}.",
            "I'd like my {card} blocked, with {reason} as the reason.",
        ),
        "lost_card": (
            "My {card} was {reason}: block it, and I need another one.",
            "Could you block my {card}, which is {reason}, and post me a new one?",
        ),
        "unblock_card": (
            "Could you unblock my {card}?",
            "I cannot pay with my {card} because it is blocked. Unblock it.",
        ),
        "raise_limit": (
            "Could my {card} have a daily limit of {limit} dollars?",
            "The limit of my {card} should be {limit} dollars per day.",
        ),
        "dispute": (
            "There is a charge of {amount} dollars by {merchant} that was {reason}. I'd like to dispute it.",
            "Could you dispute {amount} dollars to {merchant} for me? It was {reason}.",
        ),
        "fraud": (
            "There are {amount} dollars to {merchant} on my {card} that I never paid. It must be fraud.",
            "A stranger used my {card} at {merchant} for {amount} dollars.",
        ),
        "move_money": (
            "Could you transfer {amount} dollars from {account} to {target_account}?",
            "I'd like to shift {amount} dollars, from {account} to {target_account}.",
        ),
        "close_empty": ("Could you close {account}?", "I'd like {account} to be closed."),
        "close_full": (
            "Could you close {account}? Put the balance on {target_account}.",
            "I'd like to give up {account}; send its money to {target_account} first.",
        ),
        "address": ("I live somewhere else now: {address}.", "Could you note my new address? It is {address}."),
        "third_party": (
            "My father {name} lost his {card}. I'd like you to block it for him.",
            "I'm a friend of {name}, whose {card} is lost. Could you block it?",
        ),
        "out_of_scope": ("I'd be interested in {loan}.", "Who can help me with {loan}? I'd like it today."),
    },
    told=("You can find me as customer {customer_id}, code word {code_word}.",),
    phrases={
        "known": ("It's {value}, the {fact}.", "{value} is my {fact}."),
        "unknown": ("No, I can't tell you the {fact}.", "I'd have to look for my {fact}, and cannot."),
        "yes": ("That's right, do it.", "Yes, I'd like that."),
        "lost": ("I'm not sure what you mean. {restated}", "Pardon? {restated}"),
        "bye": ("Nothing else. Have a nice day!", "That's it, cheers."),
    },
)


def words(split: Split) -> Words:
    """The words of a split."""
    return TRAIN if split == "train" else HELDOUT
