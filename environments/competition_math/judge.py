"""The optional judge of a "no": a model that is asked, in both orders, whether two answers are the same (judge.yaml).

It can only turn a "no" into a "yes", and only where both orders say equal. A label counts on a line of its own, the last one.
A judge that cannot be reached, or that gives no label twice, is a failure: never "not equal".
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gym_servers.client import Client
from gym_servers.protocol import Failure, FailureError, OmnigymError, RowError, final_text, strip_reasoning

_LABEL = re.compile(r"^[ \t*`]*\[\[A(!?)=B\]\][ \t*`.]*$", re.MULTILINE)
MARKER = "<|"
"""Opens every marker of the prompt: an answer that holds it could pretend to be more than an answer."""
TRIES = 2


def label(reply: str) -> bool | None:
    """Whether the last label of `reply` that has a line of its own says equal; None where there is none."""
    found = _LABEL.findall(reply)
    return found[-1] == "" if found else None


@cache
def _templates() -> tuple[str, str]:
    read = yaml.safe_load((Path(__file__).parent / "judge.yaml").read_text())
    return str(read["system"]), str(read["user"])


def prompt(question: str, first: str, second: str) -> list[dict[str, str]]:
    """The messages for one order."""
    system, user = _templates()
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user.format(question=question, first=first, second=second)},
    ]


def _reply_text(reply: dict[str, Any]) -> str:
    """The judge's words without its reasoning, from either API. Raises FailureError where there are none."""
    text: Any
    if isinstance(output := reply.get("output"), list):
        text = final_text([item for item in output if isinstance(item, dict)])
    else:
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise FailureError(Failure(kind="judge_failed", message="the reply has neither `choices` nor `output`"))
    return strip_reasoning(text)


class Judge:
    """A model server's endpoint: the whole URL of `/v1/chat/completions` or `/v1/responses`."""

    def __init__(self, url: str, model: str, token_variable: str, seconds: float, max_tokens: int) -> None:
        self.url, self.model, self.seconds, self.max_tokens = url, model, seconds, max_tokens
        self.token = None
        if token_variable:
            self.token = os.environ.get(token_variable)
            if not self.token:
                raise OmnigymError(
                    f"competition_math: judge_token_variable names '{token_variable}', which is not set: export it"
                )

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        if self.url.endswith("/responses"):
            return {"model": self.model, "input": messages, "max_output_tokens": self.max_tokens}
        return {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}

    async def _says_equal(self, client: Client, messages: list[dict[str, str]], replies: list[str]) -> bool:
        for _ in range(TRIES):
            reply = await client.post(self.url, self._body(messages), seconds=self.seconds, kind="judge_failed")
            replies.append(_reply_text(reply.json()))
            if (equal := label(replies[-1])) is not None:
                return equal
        raise FailureError(
            Failure(kind="judge_failed", message=f"no label in {TRIES} replies; the last ends in '{replies[-1][-80:]}'")
        )

    async def equal(self, question: str, expected: str, given: str) -> tuple[bool, list[str]]:
        """(whether both orders say equal, the judge's replies). The second order is asked only after a "yes" to the first.
        Raises FailureError of kind judge_failed."""
        replies: list[str] = []
        try:
            async with Client(token=self.token) as client:
                for first, second in ((expected, given), (given, expected)):
                    if not await self._says_equal(client, prompt(question, first, second), replies):
                        return False, replies
        except FailureError as error:
            message = f"competition_math: judge at {self.url}: {error.failure.message}"
            raise FailureError(Failure(kind="judge_failed", message=message)) from None
        except RowError as error:  # its 422 speaks of our request to it, not of the task's row
            message = f"competition_math: judge at {self.url} refused the request: {error}"
            raise FailureError(Failure(kind="judge_failed", message=message, retryable=False)) from None
        return True, replies
