"""The user as played by a model: what it is told, and what of its replies can be words of a user.

A reply that is empty, speaks for the other side, calls tools, or hangs up before anything was said is the simulator's own fault: it
is asked once more, then the rollout fails (simulator_failed), and the policy is not blamed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from environments.banking.verifier import BankingRow
from gym_servers.environment import Said, UserTurn
from gym_servers.judges import Message, quoted

STOP = "###STOP###"
ENDINGS = (STOP, "###TRANSFER###")
"""The second is what models say that were told so for published rows."""
MOST_CHARS = 4000
_OTHER_ROLE = re.compile(
    r"^\W*(agent|assistant|system|representative|bank)\b[^:\n]{0,20}:|<tool_call>|<function=|<\||</?tool",
    re.IGNORECASE | re.M,
)

INSTRUCTIONS = """You play a customer who contacts a bank's desk. Write only what this customer says next, one to three sentences, in the first
person. You never play the desk.
- Tell a fact only when you are asked for it. Make up no facts: what is not below you do not know.
- You cannot do anything yourself but talk.
- Once your wish is fulfilled, refused, or handed to a person, say goodbye and end that message with {stop}."""


def instructions(row: BankingRow) -> str:
    """What the model is told of the user it plays."""
    scenario = row.customer_scenario
    parts = {
        "Who you are": scenario.customer_persona,
        "What you want": scenario.reason_for_contact,
        "What you know": scenario.customer_details,
        "What you do not know": scenario.unknown_info,
        "How you go about it": scenario.task_instructions,
    }
    told = "\n".join(f"{name}: {text}" for name, text in parts.items() if text)
    return f"{INSTRUCTIONS.format(stop=STOP)}\n\n{told}"


def messages(told: str, said: Sequence[Said]) -> list[Message]:
    """The conversation from the user's side: the desk's words are what the model answers to."""
    sides = {"user": "assistant", "assistant": "user"}
    turns = [{"role": sides[one.role], "content": quoted(one.content)} for one in said]
    return [{"role": "system", "content": told}, {"role": "user", "content": "Bank desk, how can I help you?"}, *turns]


def read(reply: str, opening: bool) -> UserTurn | None:
    """The user's words in a model's reply; None where they cannot be a user's."""
    done = any(ending in reply for ending in ENDINGS)
    words = reply
    for ending in ENDINGS:
        words = words.replace(ending, "")
    words = words.strip()
    if _OTHER_ROLE.search(words[:MOST_CHARS]) or len(words) > MOST_CHARS:
        return None
    if (opening and done) or not (words or done):
        return None
    return UserTurn(message=words, done=done)
