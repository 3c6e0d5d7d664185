"""Toy environments with a state and with group rewards, a scripted model, and how tests serve them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest
import uvicorn
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gym_servers.environment import GroupEnvironment, GroupRollout, GroupSettings, Row, Settings, StatefulEnvironment
from gym_servers.models.wire import LedgerExport, pack_ledger
from gym_servers.protocol import Item, RowError, Segment, Verdict, final_text
from gym_servers.signing import check_rollout_id
from gym_servers.tools import Tool, ToolRefused


class ToySettings(Settings):
    verify_cpu_seconds: float = 0.25
    max_answer_chars: int = 2000


class GroupToySettings(GroupSettings):
    verify_cpu_seconds: float = 0.25


class TillRow(Row):
    target: int
    start: int = 0


class Till:
    """The state: an amount and what happened. One of each kind of trouble can be asked for by a tool."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.notes: list[str] = []


class Balance(BaseModel):
    amount: int
    notes: list[str]


def deposit(state: Till, amount: Annotated[int, Field(gt=0, description="in cents")], note: str = "") -> dict[str, int]:
    """Put money into the till."""
    if amount == 13:
        raise ToolRefused("13 brings bad luck: deposit another amount")
    state.amount += amount
    state.notes.append(note)
    return {"amount": state.amount}


def balance(state: Till) -> Balance:
    state.notes.append("read")  # is never kept: the tool is declared read-only
    return Balance(amount=state.amount, notes=state.notes)


def crash(state: Till) -> str:
    state.amount = -1
    raise KeyError("drawer")


def weekday(day: date) -> str:
    return day.strftime("%A")


MEETING: list[threading.Barrier] = []
ORDER: list[str] = []


async def meet(state: Till, who: str) -> str:
    """Comes back once two of them are here at the same time."""
    await asyncio.to_thread(MEETING[0].wait, 60)
    return who


async def take_turns(state: Till, who: str) -> str:
    ORDER.append(f"{who} in")
    await asyncio.sleep(0.02)
    ORDER.append(f"{who} out")
    return who


class TillEnvironment(StatefulEnvironment):
    name = "kit_till"
    settings_type = ToySettings
    row_type = TillRow

    def seed(self, row: Row) -> Till:
        assert isinstance(row, TillRow)
        return Till(row.start)

    def tools(self) -> Sequence[Tool]:
        return [
            Tool.of(deposit),
            Tool.of(balance, read_only=True),
            Tool.of(crash),
            Tool.of(weekday, read_only=True),
            Tool.of(meet, read_only=True),
            Tool.of(take_turns),
        ]

    def gold(self, row: Row) -> list[Item]:
        return message("gold")

    def verify_state(self, row: Row, output: list[Item], state: Any) -> Verdict:
        assert isinstance(row, TillRow)
        if state is None:
            raise RowError("environment 'kit_till' grades a session, and there is none")
        while final_text(output) == "burn":
            pass
        assert isinstance(state, Till)
        return Verdict(
            reward=float(state.amount == row.target),
            explanation=f"the till holds {state.amount}, asked was {row.target}",
            parts={"amount": state.amount, "notes": state.notes},
        )


class ShortestRow(Row):
    answer: str


class Shortest(GroupEnvironment):
    """The shortest correct answer wins; of equally short ones the first."""

    name = "kit_shortest"
    settings_type = GroupToySettings
    row_type = ShortestRow

    def verify_group(self, row: Row, rollouts: list[GroupRollout]) -> list[Verdict]:
        assert isinstance(row, ShortestRow)
        texts = [final_text(rollout.output) for rollout in rollouts]
        while "burn" in texts:
            pass
        if "clash" in texts and len(texts) > 1:
            raise ValueError("they do not go together")
        right = [index for index, text in enumerate(texts) if row.answer in text]
        best = min(right, key=lambda index: len(texts[index]), default=None)
        verdicts = [
            Verdict(
                reward=1.5 if "too much" in text else float(index == best),
                explanation="the shortest correct one"
                if index == best
                else "wrong"
                if index not in right
                else "longer",
                parts={"length": len(text), "truncated": rollouts[index].truncated},
            )
            for index, text in enumerate(texts)
        ]
        return verdicts[1:] if "one less" in texts else verdicts

    def gold(self, row: Row) -> list[Item] | None:
        assert isinstance(row, ShortestRow)
        return None if row.answer == "no gold" else message(row.answer)


def message(text: str) -> list[Item]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def call(name: str, arguments: str = "{}", call_id: str = "c") -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """The toys as installed environments, here and in workers: an entry-point record in `folder`, put on sys.path."""
    record = folder / "kit_toys-1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-toys\nVersion: 1\n")
    (record / "entry_points.txt").write_text(
        "[omnigym.environments]\nkit_till = kit_toys:TillEnvironment\nkit_shortest = kit_toys:Shortest\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """`app` over real HTTP; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Model:
    """A model server with ledgers whose turns a test scripts: (request body, number of the call in its rollout) -> output
    items, or (status, body)."""

    def __init__(self) -> None:
        self.turns: Callable[[dict[str, Any], int], Any] = lambda body, n: message("4")
        self.seconds: Callable[[dict[str, Any]], float] = lambda body: 0.0
        self.requests: list[dict[str, Any]] = []
        self.calls: dict[str, int] = {}
        self.app = Starlette(
            routes=[
                Route("/v1/responses", self.responses, methods=["POST"]),
                Route("/r/{signed}/v1/responses", self.responses, methods=["POST"]),
                Route("/r/{signed}/close", self.close, methods=["POST"]),
            ]
        )

    async def responses(self, request: Request) -> Response:
        body = await request.json()
        signed = request.path_params.get("signed")
        rollout = check_rollout_id(signed, "s") if signed else "none"
        self.requests.append(body)
        self.calls[rollout] = self.calls.get(rollout, 0) + 1
        turn = self.turns(body, self.calls[rollout])
        await asyncio.sleep(self.seconds(body))
        if isinstance(turn, tuple):
            return JSONResponse(turn[1], turn[0])
        if isinstance(turn, dict):
            return JSONResponse(turn)
        fields = {
            "id": f"resp_{self.calls[rollout]}",
            "created_at": 1,
            "model": "scripted",
            "object": "response",
            "status": "completed",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
        }
        return JSONResponse({**fields, "output": turn})

    async def close(self, request: Request) -> Response:
        rollout = check_rollout_id(request.path_params["signed"], "s")
        n = self.calls.get(rollout, 0)
        segments = [Segment(token_ids=[1, 2, 3], mask=[0, 1, 1], lp_gen=[0, -1, -2])] if n else []
        usage = {"prompt_tokens": n, "sampled_tokens": 2 * n, "requests": n}
        ledger = LedgerExport(
            rollout_id=rollout, segments=segments, usage=usage, dropped=2 * n - 2 * len(segments), calls=n
        )
        return Response(pack_ledger(ledger))
