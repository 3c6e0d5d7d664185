"""CPU time of `POST /verify` in the server, beside a bare FastAPI echo in the same run.

`omnigym env serve` (all its processes, bearer token on, an idempotency key per request as the collector sends) and a bare FastAPI
server that parses a JSON body and sends it back, both under uvicorn, take turns: in every round each gets N requests over a few
kept-alive connections. The bodies are generated tasks with their gold answers, of those that the environment decides without a
worker. The client's CPU time is not counted. Shown are the best and the median round, and the median of the ratio to the echo
of the same round, given the same bodies. Target: at most 0.5 CPU-ms where the echo needs 0.25, so a ratio of at most 2.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
from typing import Any

import orjson
from measure import show, tree_cpu_seconds

from gym_servers.hosts.local import LocalHost
from gym_servers.registry import load_environment

TARGET_MS = 0.5
ENVIRONMENTS = ("competition_math", "instruction_following", "structured_outputs")
ECHO = """
import uvicorn
from fastapi import FastAPI
from gym_servers.commands.serve import bind
app = FastAPI()
@app.get("/readyz")
async def readyz() -> dict: return {}
@app.post("/echo")
async def echo(body: dict) -> dict: return body
sock = bind("127.0.0.1", 0)
print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[sock])
"""


def bodies(name: str, n: int, seed: int) -> list[bytes]:
    """n verify bodies that `quick` decides, as JSON."""
    environment = load_environment(name)
    found: list[bytes] = []
    for row in environment.generate(20 * n, seed, "train"):
        parsed = environment.check_row(row)
        gold: list[dict[str, Any]] | None = environment.gold(parsed)
        if gold is not None and environment.quick(parsed, gold) is not None:
            found.append(orjson.dumps({**row, "response": {"output": gold, "object": "response"}}))
        if len(found) == n:
            return found
    raise RuntimeError(f"{name}: too few generated tasks are decided without a worker")


async def connection(port: int, path: str, token: str, payloads: list[bytes]) -> None:
    """Send `payloads` one after the other over one connection. Raises RuntimeError for a status other than 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for payload in payloads:
        key = secrets.token_hex(16)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nIdempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        writer.write(head.encode() + payload)
        answer = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(fields[b"content-length"]))
        if b" 200 " not in answer[:20]:
            raise RuntimeError(f"{path}: {answer[:40]!r} {body[:300]!r}")
    writer.close()
    await writer.wait_closed()


async def send(url: str, path: str, token: str, payloads: list[bytes], connections: int) -> None:
    """All of `payloads` over `connections` connections."""
    port = int(url.rsplit(":", 1)[1])
    parts = [payloads[k::connections] for k in range(connections)]
    await asyncio.gather(*(connection(port, path, token, part) for part in parts if part))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="requests of one round and server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    token = secrets.token_urlsafe(16)
    sent = {name: bodies(name, 200, options.seed) for name in ENVIRONMENTS}
    repeated = {
        name: (values * (options.requests // len(values) + 1))[: options.requests] for name, values in sent.items()
    }
    spent: dict[str, list[float]] = {}
    with LocalHost() as host:
        server = host.start_environments(ENVIRONMENTS, token)
        echo = host.start("the echo server", [sys.executable, "-c", ECHO])
        targets = {
            **{f"{name} /verify": (server, f"/{name}/verify", repeated[name]) for name in ENVIRONMENTS},
            **{f"{name} echo": (echo, "/echo", repeated[name]) for name in ENVIRONMENTS},
        }
        server.wait_ready()
        echo.wait_ready()
        for at in range(options.rounds + 1):
            for name, (process, path, payloads) in targets.items():
                before = tree_cpu_seconds(process.process.pid)
                asyncio.run(send(process.url, path, token, payloads, options.connections))
                if at:  # the first is a warm-up
                    used = tree_cpu_seconds(process.process.pid) - before
                    spent.setdefault(name, []).append(1000 * used / len(payloads))
    rows: list[list[Any]] = []
    figures: dict[str, dict[str, float]] = {}
    for name in ENVIRONMENTS:
        ours, bare = spent[f"{name} /verify"], spent[f"{name} echo"]
        ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        figures[name] = {
            "best_ms": min(ours),
            "median_ms": statistics.median(ours),
            "echo_best_ms": min(bare),
            "echo_median_ms": statistics.median(bare),
            "ratio": ratio,
        }
        rows.append([name, *figures[name].values(), TARGET_MS])
    result = {"benchmark": "verify_cpu", "requests": options.requests, "rounds": options.rounds, "target_ms": TARGET_MS}
    header = ("CPU-ms a request", "best", "median", "echo best", "echo median", "ratio", "target")
    show(header, rows, {**result, "environments": figures})


if __name__ == "__main__":
    main()
