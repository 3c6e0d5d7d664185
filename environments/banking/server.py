"""The environment `banking`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import orjson
from pydantic import Field, model_validator

from environments.banking import generator, simulated
from environments.banking.bank import Bank
from environments.banking.desk import TOOLS
from environments.banking.probes import probes
from environments.banking.user import User
from environments.banking.verifier import BankingRow, apply, declared_tools, expected, replay, start, verdict
from gym_servers.environment import (
    ConversationEnvironment,
    ConversationSettings,
    Row,
    Said,
    Settings,
    Split,
    UserTurn,
)
from gym_servers.judges import ModelClient
from gym_servers.protocol import Item, RowError, Verdict
from gym_servers.tools import Tool, ToolRefused


class BankingSettings(ConversationSettings):
    """user_url: whole URL of the model server's `/v1/chat/completions` or `/v1/responses` that plays the user; "": the scripted one."""

    user_url: str = ""
    user_model: str = ""
    user_token_variable: str = ""
    """Name of the environment variable that holds its bearer token; "" for none."""
    user_seconds: float = Field(default=120.0, gt=0)
    """Wall time of one reply."""
    user_max_tokens: int = Field(default=256, ge=1)
    user_concurrency: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _user_is_whole(self) -> BankingSettings:
        if self.user_url and not self.user_url.endswith(("/chat/completions", "/responses")):
            raise ValueError(f"user_url '{self.user_url}' must end in /chat/completions or /responses")
        if bool(self.user_url) != bool(self.user_model):
            raise ValueError("user_url and user_model go together: set both or neither")
        return self


def message(role: str, text: str) -> Item:
    """A message item."""
    if role == "user":
        return {"type": "message", "role": role, "content": text}
    return {"type": "message", "role": role, "content": [{"type": "output_text", "text": text}]}


class Banking(ConversationEnvironment):
    """A bank's customer desk."""

    name = "banking"
    settings_type: ClassVar[type[Settings]] = BankingSettings
    row_type: ClassVar[type[Row]] = BankingRow
    ending_tools = frozenset({"transfer_to_human"})
    _model: ModelClient | None = None

    async def open(self) -> None:
        if self.settings.user_url:
            model = ModelClient(
                "environment 'banking': simulated user",
                self.settings.user_url,
                self.settings.user_model,
                token_variable=self.settings.user_token_variable,
                seconds=self.settings.user_seconds,
                max_tokens=self.settings.user_max_tokens,
                concurrency=self.settings.user_concurrency,
                kind="simulator_failed",
            )
            await model.open()
            self._model = model

    async def close(self) -> None:
        if self._model is not None:
            await self._model.close()
            self._model = None

    def tools(self) -> Sequence[Tool]:
        return list(TOOLS.values())

    def seed(self, row: Row) -> Bank:
        assert isinstance(row, BankingRow)
        if unknown := sorted(declared_tools(row) - set(TOOLS)):  # a call of one would be nobody's fault
            raise RowError(
                f"environment 'banking' task '{row.task_id or '?'}': field 'responses_create_params.tools': the desk has no "
                f"{unknown}; it has: {', '.join(TOOLS)}"
            )
        expected(row)  # a row whose ground truth cannot be carried out is refused before anybody samples for it
        bank = start(row)
        if self.settings.user_url:
            bank.user = simulated.instructions(row)
        elif row.user is not None:
            bank.user = User(row.user)
        else:
            raise RowError(
                f"environment 'banking' task '{row.task_id or '?'}': field 'user' is missing: a row without a scripted user needs a "
                "model that plays `customer_scenario`: set banking.user_url and banking.user_model"
            )
        return bank

    async def user_turn(self, state: Any, said: list[Said]) -> UserTurn:
        assert isinstance(state, Bank)
        if isinstance(state.user, User):
            return state.user.turn(said[-1].content if said else None)
        assert self._model is not None, "seed made the user for a model, which open made"
        turn, _ = await self._model.ask(simulated.messages(state.user, said), partial(simulated.read, opening=not said))
        return turn

    def verify_state(self, row: Row, output: list[Item], state: Any) -> Verdict:
        """Without a session: of the calls in `output` that have an output."""
        assert isinstance(row, BankingRow)
        return verdict(row, replay(row, output) if state is None else state)

    def gold(self, row: Row) -> list[Item] | None:
        """The conversation with the scripted user in which the ground truth is carried out at once."""
        assert isinstance(row, BankingRow)
        if row.user is None:
            return None
        bank, user = start(row), User(row.user)
        output = [message("user", user.turn(None).message)]
        for number, call in enumerate(row.ground_truth):
            try:
                result = apply(bank, call.name, call.arguments)
            except ToolRefused:
                return None
            call_id, arguments = f"call_{number}", orjson.dumps(call.arguments).decode()
            output.append({"type": "function_call", "call_id": call_id, "name": call.name, "arguments": arguments})
            shown = result if isinstance(result, str) else orjson.dumps(result).decode()
            output.append({"type": "function_call_output", "call_id": call_id, "output": shown})
        done = bank.ended
        while not done:
            output.append(message("assistant", "That is settled, as the policy says. Is there anything else?"))
            turn = user.turn("Is there anything else?")
            output.append(message("user", turn.message))
            done = turn.done
        return output

    def probes(self, row: Row) -> dict[str, list[Item]]:
        assert isinstance(row, BankingRow)
        return probes(row)

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
