"""Serves an ASGI app on a free port of loopback, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from gym_servers.base import ServerSettings
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.engine import Generation, Sampling
from gym_servers.models.scripted import ScriptedEngine
from gym_servers.models.wire import LedgerExport, unpack_ledger
from gym_servers.signing import sign_rollout_id

SECRET = "s"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app's address while it serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Recording(ScriptedEngine):
    """Keeps every call: (prompt ids, what was sampled)."""

    def __init__(self, script: Any, **values: Any) -> None:
        super().__init__(script, **values)
        self.calls: list[tuple[list[int], Generation]] = []
        self.samplings: list[Sampling] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str) -> Generation:
        self.samplings.append(sampling)
        generation = await super().generate(prompt_ids, sampling, seed, request_id)
        self.calls.append((list(prompt_ids), generation))
        return generation


class World:
    """A model server over `engine`, spoken to over HTTP."""

    def __init__(self, engine: ScriptedEngine, url: str) -> None:
        self.engine, self.url = engine, url
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def base(self, rollout: str = "r") -> str:
        """The rollout's own base URL."""
        return f"{self.url}/r/{sign_rollout_id(rollout, SECRET)}/v1"

    def post(self, path: str, rollout: str | None = None, status: int = 200, **body: Any) -> dict[str, Any]:
        """The JSON answer, whose status must be `status`."""
        prefix = "" if rollout is None else f"/r/{sign_rollout_id(rollout, SECRET)}"
        reply = self.http.post(f"{prefix}{path}", json=body)
        assert reply.status_code == status, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def chat(self, messages: list[dict[str, Any]], rollout: str | None = "r", **body: Any) -> dict[str, Any]:
        """The assistant's message."""
        answer = self.post("/v1/chat/completions", rollout, messages=messages, **body)
        message: dict[str, Any] = answer["choices"][0]["message"]
        return message

    def refused(self, status: int, rollout: str | None = "r", **body: Any) -> str:
        """The error's message."""
        body.setdefault("messages", [{"role": "user", "content": "?"}])
        message: str = self.post("/v1/chat/completions", rollout, status, **body)["error"]["message"]
        return message

    def close(self, rollout: str = "r") -> LedgerExport:
        reply = self.http.post(f"/r/{sign_rollout_id(rollout, SECRET)}/close", json={})
        assert reply.status_code == 200, reply.text
        return unpack_ledger(reply.content)

    def update(self, version: int, digest: str = "d", status: int = 200, **more: Any) -> dict[str, Any]:
        """Ask for a weight update."""
        body = {"path": "-", "digest": digest, "version": version, **more}
        reply = self.http.post("/admin/update_weights", json=body)
        assert reply.status_code == status, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/admin/state").json()
        return found


@contextmanager
def model_world(engine: ScriptedEngine, **settings: Any) -> Iterator[World]:
    """A server over `engine` with ModelSettings of `settings`."""
    guard = build_model_server(engine, ModelSettings(secret=SECRET, **settings), ServerSettings())
    with serving(guard) as url:
        world = World(engine, url)
        try:
            yield world
        finally:
            world.http.close()


def masked(export: LedgerExport) -> list[list[int]]:
    """Ids whose mask is 1, per segment."""
    return [[i for i, m in zip(s.token_ids, s.mask, strict=True) if m] for s in export.segments]


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until it is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
