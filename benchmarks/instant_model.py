"""A model server whose engine answers at once: what a rollout costs without a model. Started by rollout_cpu.py.

It prints its address like every server of ours. The engine is the smallest that gym_servers.models.app serves: ids are the bytes
of the text, so that a real tokenizer's cost is left out. Where a scripted engine is part of the model servers, use that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import uvicorn

from gym_servers.base import ServerSettings
from gym_servers.commands.serve import bind
from gym_servers.models.app import ModelSettings, build_model_server
from gym_servers.models.engine import EngineState, Generation, Sampling

END = 256
ANSWER = "The number of apples is the sum of both baskets, so the answer is \\boxed{55}."


class Bytes:
    """One token per byte, and one that ends a turn."""

    end_token = "<|end|>"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        text = bytes(token for token in ids if token < END).decode(errors="replace")
        return text + self.end_token if ids and ids[-1] == END else text


class Instant:
    """Says ANSWER to everything."""

    def __init__(self) -> None:
        self.state = EngineState(model="instant", dtype="none")
        self.tokenizer = Bytes()
        self.max_context = 1 << 20
        self.chat_template: str | None = None
        self.special: tuple[tuple[str, str], ...] = ()
        self._ids = [*ANSWER.encode(), END]

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, request_id: str) -> Generation:
        return Generation(list(self._ids), [-0.5] * len(self._ids), "stop", (0,))

    async def abort(self, request_ids: Sequence[str]) -> None:
        return None

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[0.0] * (len(ids) - 1) for ids in sequences]

    async def update_weights(self, path: str, digest: str, version: int) -> None:
        return None

    async def check(self) -> None:
        return None

    async def close(self) -> None:
        return None


def main() -> None:
    """Serve until ended. OMNIGYM_SECRET signs rollout ids, OMNIGYM_TOKEN is the bearer token."""
    settings = ModelSettings(secret=os.environ["OMNIGYM_SECRET"])
    guard = build_model_server(Instant(), settings, ServerSettings(token=os.environ["OMNIGYM_TOKEN"]))
    sock = bind("127.0.0.1", 0)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(guard, log_level="warning", access_log=False)).run(sockets=[sock])


if __name__ == "__main__":
    main()
