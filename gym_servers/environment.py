"""What an environment is: the contract between a verifier and the server, the CLI and the collector.

An environment subclasses `Environment` in its `server.py`; the verifier itself lives in `verifier.py` as a pure function.
The resources server (gym_servers/resources.py) adapts it to HTTP, `omnigym verify` runs it without a server. Both call
`quick` first, in the server's process, and hand whatever it leaves undecided to `verify` in a killable worker
(gym_servers/workers.py): model output is only ever examined by unbounded code under hard CPU, memory and wall limits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gym_servers.protocol import Item, OmnigymError, RowError, Verdict
from gym_servers.tools import Tool

Split = Literal["train", "heldout"]


class Settings(BaseModel):
    """Settings of an environment, from its environment.yaml and `--set key=value`. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")
    max_answer_chars: int = 65536
    """Answers are cut to this length before any parser sees them."""
    verify_cpu_seconds: float = 2.0
    """CPU time of one `verify` in a worker; past it the output is unverifiable (reward 0)."""
    verify_memory_mb: int = 1024
    """Address-space growth allowed to one worker."""


class Row(BaseModel):
    """Base of an environment's row model: `responses_create_params` and extra fields are kept."""

    model_config = ConfigDict(extra="allow")
    responses_create_params: dict[str, Any] = {}
    task_id: str | None = None


class Environment(ABC):
    """One environment. Stateless: sessions belong to the server. Must be picklable by (name, settings)."""

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings
    row_type: ClassVar[type[Row]] = Row
    reward: ClassVar[Literal["single", "group"]] = "single"
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    agent: ClassVar[str] = "tool_loop"
    max_steps: ClassVar[int | None] = None
    """Model calls that an episode may take; None: as many as the agent allows. An agent of ours takes the smaller number."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings: Any = settings if settings is not None else self.settings_type()

    def check_row(self, row: dict[str, Any]) -> Row:
        """Parse and check a row. Raises RowError that names environment, task and field."""
        try:
            return self.row_type.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "(row)"
            found = sorted(key for key in row if key not in ("responses_create_params", "response"))
            raise RowError(
                f"environment '{self.name}' task '{row.get('task_id') or row.get('id') or '?'}': "
                f"field '{where}': {first['msg']}; found fields {found}"
            ) from None

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        """A verdict that bounded, linear-time code can give in the server's own process; None: ask `verify`."""
        return None

    @abstractmethod
    def verify(self, row: Row, output: list[Item]) -> Verdict:
        """Pure function of the row and the Responses output items. Runs in a killable worker."""

    def tools(self) -> Sequence[Tool]:
        """What an agent can call. A tool that takes the state belongs to a StatefulEnvironment."""
        return ()

    async def appeal(self, row: Row, output: list[Item], verdict: Verdict) -> Verdict:
        """A second look at a verdict by whoever takes longer than code, such as a judge over HTTP; the same verdict where
        there is nobody to ask. Runs in the server's event loop, so it parses no model output. Raises FailureError."""
        return verdict

    async def open(self) -> None:
        """Start what verdicts and tools share, such as a sandbox; called once in the event loop that serves, before the first
        request. Raises OmnigymError: the server is then not ready and says so."""
        return None

    async def close(self) -> None:
        """End what `open` started; called also where it raised."""
        return None

    def prepare(self) -> None:
        """Import what `verify` needs; called once where workers are forked from, outside anybody's CPU limit."""
        return None

    def gold(self, row: Row) -> list[Item] | None:
        """Output items that earn full reward; None where no gold answer can be made from a row."""
        return None

    def probes(self, row: Row) -> dict[str, list[Item]]:
        """Outputs by name that try to earn this row's reward without solving it, beside those that `omnigym env check` tries on
        every environment. None of them may earn the full reward."""
        return {}

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        """`n` seeded task rows of graded difficulty (`difficulty` in [0, 1] is a field of each row). Deterministic in
        (n-prefix, seed, split); parameters of train and heldout are disjoint."""
        raise OmnigymError(f"environment '{self.name}' has no generator: its tasks come from a file")

    @classmethod
    def folder(cls) -> Path:
        """Folder with environment.yaml, cases.jsonl and README.md."""
        import importlib

        module = importlib.import_module(cls.__module__)
        assert module.__file__ is not None
        return Path(module.__file__).parent


@asynccontextmanager
async def opened(environment: Environment) -> AsyncIterator[None]:
    """`environment`, open while the context is. Raises what its `open` raises."""
    try:
        await environment.open()
        yield
    finally:
        await environment.close()


class AwaitedEnvironment(Environment):
    """An environment whose verdict is waited for rather than computed: a sandbox runs the answer, or a judge reads it."""

    @abstractmethod
    async def verify_awaited(self, row: Row, output: list[Item]) -> Verdict:
        """The verdict where `quick` gave none. Runs in the server's event loop, so it only takes text apart by linear-time code and
        hands the rest on. Raises RowError, or FailureError where whoever is asked cannot say."""

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        raise OmnigymError(f"environment '{self.name}' has no verdict without a server's event loop")


class StatefulEnvironment(Environment):
    """An environment whose episode has a state, which tools read and change. It is pickled between requests."""

    @abstractmethod
    def seed(self, row: Row) -> Any:
        """The state at the start of an episode."""

    @abstractmethod
    def verify_state(self, row: Row, output: list[Item], state: Any) -> Verdict:
        """Pure function of the row, the output items and the state at the end. Runs in a killable worker.

        state is None where there was no session: the output is graded by what its calls say, or refused by a RowError.
        """

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        return self.verify_state(row, output, None)


class ConversationSettings(Settings):
    """Settings of an environment whose agent talks with a user."""

    max_turns: int = Field(default=12, ge=1)
    """Times that the user speaks in one episode, the opening included."""


class UserTurn(BaseModel):
    """What the simulated user says. done: the conversation is over, once this is said."""

    message: str
    done: bool = False


class Said(BaseModel):
    """One message of a conversation as both sides hear it: no reasoning, no tool calls, no system prompt."""

    role: Literal["user", "assistant"]
    content: str


class ConversationEnvironment(StatefulEnvironment):
    """An environment whose agent talks with a simulated user (agent `conversation`). Its settings are ConversationSettings."""

    agent = "conversation"
    settings_type: ClassVar[type[Settings]] = ConversationSettings
    ending_tools: ClassVar[frozenset[str]] = frozenset()
    """Tools after which there is nobody to talk to any more, such as one that hands the user over."""

    @abstractmethod
    async def user_turn(self, state: Any, said: list[Said]) -> UserTurn:
        """The user's next words; said: the conversation so far, [] where the user opens it. What the user remembers is part of
        `state`, which is kept. Runs in the server's event loop. Raises FailureError (simulator_failed) where it is at fault."""


class GroupRollout(BaseModel):
    """What a group verdict knows of one rollout."""

    model_config = ConfigDict(extra="allow")
    output: list[Item]
    attempt: int = 0
    truncated: bool = False
    usage: dict[str, int] = {}


class GroupSettings(Settings):
    """Settings of an environment that rewards groups."""

    num_rollouts_per_prompt: int = 0
    """How many rollouts a group has where NeMo-Gym's clients send each by itself (gym_servers/cohorts.py); 0: they may not."""
    group_wait_seconds: float = 600.0
    """How long the first rollout of such a group waits for the last."""


class GroupEnvironment(Environment):
    """An environment that rewards the rollouts of one task together, by comparing them. It keeps no state."""

    settings_type: ClassVar[type[Settings]] = GroupSettings
    reward = "group"

    @abstractmethod
    def verify_group(self, row: Row, rollouts: list[GroupRollout]) -> list[Verdict]:
        """One verdict a rollout, in their order. Pure, runs in a killable worker. A group may be of any size from 1."""

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        raise RowError(
            f"environment '{self.name}' rewards groups: POST /{self.name}/verify_group {{task, rollouts: [{{response}}]}}, or "
            f"serve it with the setting num_rollouts_per_prompt and send each rollout of a group to /verify"
        )
