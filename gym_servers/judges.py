"""Asking a model: a judge of answers, or whoever else speaks through a model server under a name.

`ModelClient.text` sends messages and returns the words of the reply without its reasoning; `ask` reads a label in them and asks once more
where there is none. Whatever goes wrong there is a failure, never a verdict: the endpoint is out of reach or refuses, or no reply has
a label. The endpoint is any model server's whole URL of `/v1/chat/completions` or `/v1/responses`. Left out: streaming, tools.

What a judge is told is a `Prompt`, a YAML file with `user` and perhaps `system`. What the policy wrote goes into it through `quoted`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

import yaml
from pydantic import Field, model_validator

from gym_servers.client import TRANSIENT, Client
from gym_servers.environment import AwaitedEnvironment, Settings
from gym_servers.protocol import Failure, FailureError, FailureKind, OmnigymError, RowError, final_text, strip_reasoning
from gym_servers.variables import variable

log = logging.getLogger("omnigym.judges")
TRIES = 2
Label = TypeVar("Label")
Message = dict[str, str]
"""role and content"""
_NEGATION = re.compile(r"\b(?:not|no|never|cannot|neither|nor|without|unable|unsure|hardly)\b|n['’]t\b", re.IGNORECASE)


class JudgeSettings(Settings):
    """Settings of an environment that may ask a judge."""

    judge_url: str = ""
    """Whole URL of a model server's `/v1/chat/completions` or `/v1/responses`; "" asks nobody."""
    judge_model: str = ""
    """The name that the judge's server knows its model by."""
    judge_token_variable: str = ""
    """Name of the environment variable that holds the judge's bearer token; "" for none."""
    judge_seconds: float = Field(default=120.0, gt=0)
    """Wall time of one question to the judge."""
    judge_max_tokens: int = Field(default=2048, ge=1)
    judge_concurrency: int = Field(default=64, ge=1)
    """Questions that the judge gets at once; the others wait here."""

    @model_validator(mode="after")
    def _judge_is_whole(self) -> JudgeSettings:
        if self.judge_url and not self.judge_url.endswith(("/chat/completions", "/responses")):
            raise ValueError(f"judge_url '{self.judge_url}' must end in /chat/completions or /responses")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ValueError("judge_url and judge_model go together: set both or neither")
        return self


def reply_text(reply: dict[str, Any]) -> str:
    """The words of a reply of either API, without reasoning. Raises FailureError where there are none."""
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


class ModelClient:
    """A model at `url` under the name `model`. Raises OmnigymError where its token's variable is not set.

    who: begins every error, such as "environment 'open_qa': judge". seconds: of one question, waiting for its turn not counted.
    kind: of its failures. Use it between `open` and `close`, in one event loop.
    """

    def __init__(
        self,
        who: str,
        url: str,
        model: str,
        *,
        token_variable: str = "",
        seconds: float = 120.0,
        max_tokens: int = 2048,
        concurrency: int = 64,
        kind: FailureKind = "judge_failed",
    ) -> None:
        self.who, self.url, self.model, self.seconds, self.max_tokens = who, url, model, seconds, max_tokens
        self.kind: FailureKind = kind
        token = variable(token_variable) if token_variable else None
        if token_variable and not token:
            raise OmnigymError(
                f"{who}: its token is to be in the variable '{token_variable}', which is not set: export it"
            )
        # The turns bound its connections: whoever waits for a connection of the pool is on the clock already.
        self._client = Client(token=token, concurrency=0, retried=TRANSIENT)
        self._turns = asyncio.Semaphore(concurrency)

    async def open(self) -> None:
        """Make the pool of connections; the endpoint is not asked."""
        await self._client.__aenter__()

    async def close(self) -> None:
        """End the connections."""
        await self._client.__aexit__()

    def _body(self, messages: Sequence[Message]) -> dict[str, Any]:
        if self.url.endswith("/responses"):
            return {"model": self.model, "input": list(messages), "max_output_tokens": self.max_tokens}
        return {"model": self.model, "messages": list(messages), "max_tokens": self.max_tokens}

    def _failure(self, message: str, retryable: bool = True) -> FailureError:
        return FailureError(
            Failure(kind=self.kind, message=f"{self.who} at {self.url}: {message}", retryable=retryable)
        )

    async def text(self, messages: Sequence[Message]) -> str:
        """The reply's words, reasoning removed. Raises FailureError of the client's kind."""
        try:
            async with self._turns:
                reply = await self._client.post(self.url, self._body(messages), seconds=self.seconds, kind=self.kind)
            return reply_text(reply.json())
        except FailureError as error:
            raise self._failure(error.failure.message, error.failure.retryable) from None
        except RowError as error:  # its 422 speaks of our request to it, not of the task's row
            raise self._failure(f"it refused the request: {error}", retryable=False) from None

    async def ask(self, messages: Sequence[Message], read: Callable[[str], Label | None]) -> tuple[Label, str]:
        """(the label that `read` finds in the reply, the reply). Asked again where it finds None; raises FailureError where TRIES
        replies have none."""
        reply = ""
        for _ in range(TRIES):
            reply = await self.text(messages)
            if (found := read(reply)) is not None:
                return found, reply
        raise self._failure(f"no label in {TRIES} replies; the last ends in '{reply[-80:]}'")


def judge_client(environment: str, settings: JudgeSettings) -> ModelClient:
    """The judge that `settings` name. Raises OmnigymError where its token is missing."""
    return ModelClient(
        f"environment '{environment}': judge",
        settings.judge_url,
        settings.judge_model,
        token_variable=settings.judge_token_variable,
        seconds=settings.judge_seconds,
        max_tokens=settings.judge_max_tokens,
        concurrency=settings.judge_concurrency,
    )


class JudgedEnvironment(AwaitedEnvironment):
    """An environment whose verdicts need a judge. It is served without one too: a row that needs it is then a failure that says
    what to set."""

    settings_type = JudgeSettings
    _judge: ModelClient | None = None

    async def open(self) -> None:
        if not self.settings.judge_url:
            log.warning("environment '%s': no judge_url is set: a row that needs a judge is a failure", self.name)
            return
        judge = judge_client(self.name, self.settings)
        await judge.open()
        self._judge = judge

    async def close(self) -> None:
        if self._judge is not None:
            await self._judge.close()
            self._judge = None

    def _nobody(self) -> str:
        return (
            f"environment '{self.name}': there is no judge to ask: set {self.name}.judge_url and {self.name}.judge_model "
            f"(`omnigym env serve --set {self.name}.judge_url=http://HOST:PORT/v1/chat/completions --set "
            f"{self.name}.judge_model=NAME`); `omnigym model serve` serves one"
        )

    async def ask(self, messages: Sequence[Message], read: Callable[[str], Label | None]) -> tuple[Label, str]:
        """(label, reply) of the judge. Raises FailureError, one that is not retryable where there is no judge."""
        if self._judge is None:
            not_open = f"environment '{self.name}': its judge is not open: see what the server said at its start"
            message = not_open if self.settings.judge_url else self._nobody()
            raise FailureError(Failure(kind="judge_failed", message=message, retryable=False))
        return await self._judge.ask(messages, read)


class Prompt:
    """What a judge is told: `user`, and perhaps `system`, of a YAML file; `{field}` is filled in, `{{` is a brace.

    fields: those there are; `user` must have those of `needed`. Raises OmnigymError that names the file.
    """

    def __init__(self, path: Path, fields: Sequence[str], needed: Sequence[str]) -> None:
        try:
            read = yaml.safe_load(path.read_text())
            if (
                not isinstance(read, dict)
                or not set(read) <= {"system", "user"}
                or not isinstance(read.get("user"), str)
            ):
                raise ValueError("it must have `user`, a text, and may have `system`")
            self.user, self.system = read["user"], str(read.get("system") or "")
            used = [name for _, name, _, _ in Formatter().parse(self.user) if name is not None]
            wrong = [name for name in used if name not in fields] + [name for name in needed if name not in used]
            if wrong:
                raise ValueError(
                    f"`user` has the fields {used}; it must have {list(needed)}, and may have {list(fields)}"
                )
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise OmnigymError(f"the judge's prompt {path}: {error}") from None

    def messages(self, values: Mapping[str, str]) -> list[Message]:
        """The messages with `values` filled in. What the policy wrote must be `quoted`."""
        user = {"role": "user", "content": self.user.format(**values)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


def quoted(text: str) -> str:
    """`text` as data of a prompt: it can neither forge the markers `<|...|>` that part the prompt, nor a label in `[[ ]]` for a judge
    to repeat."""
    text = text.encode(errors="replace").decode()  # half of a surrogate pair can be sent nowhere
    return re.sub(r"\[(?=\[)", "[ ", text.replace("<|", "< |"))


def label_reader(labels: Mapping[str, Label]) -> Callable[[str], Label | None]:
    """Reads the last label that has a line of its own; where none has one, the only one that the reply names, once or more.

    None where there is none, where several are named in running text, or where a negation stands before one on its line."""
    names = "|".join(re.escape(name) for name in sorted(labels, key=len, reverse=True))
    alone = re.compile(rf"^[ \t*`]*({names})[ \t*`.]*$", re.MULTILINE)
    anywhere = re.compile(rf"(?<!\w)({names})(?!\w)")

    def read(reply: str) -> Label | None:
        if lines := alone.findall(reply):
            return labels[lines[-1]]
        found = list(anywhere.finditer(reply))
        if any(_NEGATION.search(reply, reply.rfind("\n", 0, label.start()) + 1, label.start()) for label in found):
            return None  # "The answer is not CORRECT", "I cannot say [[A=B]]"
        named = {label.group(1) for label in found}
        return labels[named.pop()] if len(named) == 1 else None

    return read
