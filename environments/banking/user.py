"""The scripted user: rules, seeded, several phrasings. It has goals, knows some facts and not others, and tells only what is asked.

It reads the agent's last message a sentence at a time. A sentence that asks (a question, or "please tell me") for facts gets those, and
for a fact that the user does not know, that. A question whether to go on gets a yes. News of what was done, or refused, or "anything
else?" leads to the next goal, and after the last to the goodbye. A message that is none of these is not understood; the third ends it.
All of it takes linear time.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from gym_servers.environment import UserTurn

PATIENCE = 3
HEARD_CHARS = 8000
"""Of the agent's message, from its start: nobody listens to more."""

ASKED = {
    "customer_id": r"customer (id|number|no\b)|client (id|number)",
    "code_word": r"code ?word|pass ?word|pass ?phrase|security (word|answer)|secret word",
    "name": r"(your|full|first|last) (full )?name|name on the account|who am i (speaking|talking)",
    "date_of_birth": r"date of birth|birth ?date|birthday|born|\bdob\b",
    "card": r"(which|what) card|card (number|id)|last (four|4)|digits of",
    "merchant": r"merchant|(which|what) (charge|transaction|payment|purchase)|which (shop|store)|transaction (id|number)",
    "amount": r"how much|(what|which|the|exact) (is the )?amount",
    "date": r"(when|what day|which day|what date|on which date) (was|did|were)|date of the (charge|transaction|payment|purchase)",
    "account": r"from (which|what) account|(?<!to )(?<!into )(?<!onto )(which|what) account(?!.{0,40}(money|balance|funds))|"
    r"account (number|id)|(which|what) one of your accounts",
    "target_account": r"(?<!from )(which|what) account .{0,40}(money|balance|funds)|(to|into|onto) (which|what) account|"
    r"where .{0,60}(money|balance|funds)|another account|destination",
    "address": r"address|street|post ?code|\bzip\b",
    "limit": r"(what|which|new) (daily |card )?limit|how high|limit (would|do|should) you|raise it to|(what|which) amount",
    "reason": r"\bwhy\b|reason|what happened|lost or stolen|stolen or lost|what (is|was) wrong|problem with",
    "new_card": r"new card|replacement|replace",
}
"""Facts, and the words that ask for them."""
_ASKED = {name: re.compile(words) for name, words in ASKED.items()}
_ASKS = re.compile(
    r"\?|\b(please|tell me|give me|provide|share|let me know|i need|i'll need|i will need|could you|can you)\b"
)
_ELSE = re.compile(r"anything else|something else|any other|further (help|questions|assistance)|else i can")
_CONFIRM = re.compile(
    r"confirm|shall i|should i|may i|can i\b|do you (want|wish)|would you like|is (that|this) (right|correct|ok|okay|fine)|"
    r"are you sure|go ahead|proceed|agree"
)
_NEWS = re.compile(
    r"\b(done|has been|is now|are now|blocked|unblocked|closed|changed|updated|raised|moved|opened|reported|"
    r"cannot|can't|can not|could not|couldn't|unable|not able|not allowed|not possible|sorry|unfortunately|refuse\w*|"
    r"will be|successful\w*|complete\w*|a person|a colleague)\b"
)
_SENTENCES = re.compile(r"[^.?!\n]+[.?!\n]?")


class Goal(BaseModel):
    """One thing that the user wants. opening: how it is first said; restated: shorter. facts: of this goal, as they are spoken."""

    model_config = ConfigDict(extra="forbid")
    opening: str = Field(min_length=1)
    restated: str = ""
    facts: dict[str, str] = {}


class Script(BaseModel):
    """A row's user. facts: known throughout. phrases: by occasion (known, unknown, yes, lost, bye), `{fact}` and `{value}` in them."""

    model_config = ConfigDict(extra="forbid")
    goals: list[Goal] = Field(min_length=1)
    facts: dict[str, str] = {}
    phrases: dict[str, list[str]] = {}
    seed: int = 0


PHRASES = {
    "known": ["{fact}: {value}."],
    "unknown": ["I don't know my {fact}."],
    "yes": ["Yes, please."],
    "lost": ["I don't understand. {restated}"],
    "bye": ["No, that is all. Goodbye."],
}
SPOKEN = {
    "customer_id": "customer number",
    "code_word": "code word",
    "date_of_birth": "date of birth",
    "target_account": "other account",
    "new_card": "new card",
}
WITHOUT = {"reason": "There is no special reason.", "new_card": "No new card, thank you."}
"""Facts told as whole sentences, and what is said where the script has none."""


@dataclass
class User:
    """What the user remembers. goal: index of the one that it is at. lost: messages that it did not understand."""

    script: Script
    goal: int = 0
    lost: int = 0
    turns: int = 0

    def say(self, occasion: str, **values: str) -> str:
        """A phrase for `occasion`, drawn by the script's seed and how often the user has spoken."""
        choices = self.script.phrases.get(occasion) or PHRASES[occasion]
        phrase = random.Random(f"{self.script.seed}/{self.turns}/{occasion}/{values.get('fact')}").choice(choices)
        for key, value in values.items():
            phrase = phrase.replace("{" + key + "}", value)
        return phrase

    def knows(self, fact: str) -> str | None:
        """What the user would say of `fact`."""
        return self.script.goals[self.goal].facts.get(fact, self.script.facts.get(fact, WITHOUT.get(fact)))

    def answer(self, fact: str) -> str:
        """The user's words on a fact that was asked for."""
        value, spoken = self.knows(fact), SPOKEN.get(fact, fact)
        if value is None:
            return self.say("unknown", fact=spoken)
        if fact in WITHOUT:  # whole sentences
            return value
        return self.say("known", fact=spoken, value=value)

    def turn(self, message: str | None) -> UserTurn:
        """The user's next words. message: the agent's last; None: the user opens the conversation."""
        self.turns += 1
        if message is None:
            return UserTurn(message=self.script.goals[0].opening)
        text = message[:HEARD_CHARS].lower().replace("’", "'")
        asking: list[str] = []
        telling: list[str] = []
        for one in _SENTENCES.findall(text):
            (asking if _ASKS.search(one) else telling).append(one)
        closing = [one for one in asking if _ELSE.search(one)]
        asking = [one for one in asking if one not in closing]
        if facts := asked_for(asking):
            return UserTurn(message=" ".join(self.answer(fact) for fact in facts))
        if any(_CONFIRM.search(one) for one in asking):
            return UserTurn(message=self.say("yes"))
        if closing or any(_NEWS.search(one) for one in telling):
            return self._next()
        self.lost += 1
        if self.lost >= PATIENCE:
            return UserTurn(message="This leads nowhere. Goodbye.", done=True)
        goal = self.script.goals[self.goal]
        return UserTurn(message=self.say("lost", restated=goal.restated or goal.opening))

    def _next(self) -> UserTurn:
        """On to the next goal, or the goodbye."""
        if self.goal + 1 < len(self.script.goals):
            self.goal += 1
            return UserTurn(message=self.script.goals[self.goal].opening)
        return UserTurn(message=self.say("bye"), done=True)


def asked_for(sentences: list[str]) -> list[str]:
    """The facts that `sentences`, in lower case, ask for."""
    return [name for name, words in _ASKED.items() if any(words.search(one) for one in sentences)]
