"""What a session of workplace_assistant costs: seconds to seed it, seconds of its verdict, bytes while it is open.

CPU time of this process, in which each operation is done as the server does it, without HTTP and without a worker's process: seed is
`check_row`, `seed`, pickling and storing; verify is loading the session, unpickling, `check_row` and `verify_state`, as in a worker, after
the task's calls were made in the session; both on generated rows, mean of N. Bytes are what this process's memory grows by for N open
sessions in a MemorySessions store, and for N that have made their calls. Beside them the CPU time of one POST /seed_session, of one tool
call and of one POST /verify over HTTP, of all the server's processes. Targets: 0.1 ms a seed, 2 ms a verify, 10,000 sessions in 1 GB.
--redis: the N sessions are in a redis-server that is started for it (used_memory of it, and CPU time of this process for its commands).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import pickle
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import redis
from measure import show, tree_cpu_seconds
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from gym_servers.environment import StatefulEnvironment
from gym_servers.hosts.local import LocalHost
from gym_servers.parent import end_with_parent
from gym_servers.redis_link import RedisLink
from gym_servers.redis_sessions import RedisSessions
from gym_servers.registry import load_environment
from gym_servers.sessions import MemorySessions, Session, SessionStore

NAME = "workplace_assistant"
SEED_MS, VERIFY_MS, BYTES = 0.1, 2.0, 10**9 / 10_000
Line = dict[str, Any]


def made(environment: StatefulEnvironment, row: Line, state: bytes) -> bytes:
    """The session's state after the ground truth's calls."""
    tools = {tool.name: tool for tool in environment.tools()}
    open_state = pickle.loads(state)
    for true in row["ground_truth"]:
        tool = tools[true["name"]]
        tool.function(open_state, **tool.parse(json.loads(true["arguments"])))
    return pickle.dumps(open_state, pickle.HIGHEST_PROTOCOL)


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[RedisLink, Callable[[], float]]]:
    """(connections to a redis-server of its own, its used bytes)."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with subprocess.Popen(
            ["redis-server", *settings], stdout=subprocess.DEVNULL, preexec_fn=end_with_parent
        ) as server:
            with redis.Redis(port=port, retry=Retry(ConstantBackoff(0.05), 200)) as client:
                client.ping()
                yield RedisLink(f"redis://127.0.0.1:{port}/0"), lambda: float(client.info("memory")["used_memory"])
            server.kill()


async def in_process(
    environment: StatefulEnvironment, rows: list[Line], n: int, store: SessionStore, used: Callable[[], float]
) -> dict[str, float]:
    """ms a seed and a verify, bytes a session, fresh and after its calls. n sessions in `store`, whose bytes `used` tells."""
    names = [secrets.token_hex(16) for _ in range(n)]
    environment.seed(environment.check_row(rows[0]))  # the database is read once
    gc.collect()
    memory, began = used(), time.process_time()
    for k, name in enumerate(names):
        state = environment.seed(environment.check_row(rows[k % len(rows)]))
        await store.store(name, Session(pickle.dumps(state, pickle.HIGHEST_PROTOCOL)))
    seed = time.process_time() - began
    fresh = used() - memory
    for k, name in enumerate(names):
        session = await store.load(name)
        assert session is not None
        await store.store(name, session.after(made(environment, rows[k % len(rows)], session.state), None, ("", b"")))
    busy = used() - memory
    began, rewards = time.process_time(), 0.0
    for k, name in enumerate(names):
        session = await store.load(name)
        assert session is not None
        row = environment.check_row(rows[k % len(rows)])
        rewards += environment.verify_state(row, [], pickle.loads(session.state)).reward
    verify = time.process_time() - began
    if rewards != n:
        raise RuntimeError(f"{n - rewards:g} of {n} sessions did not get their reward: nothing was measured")
    return {"seed_ms": 1e3 * seed / n, "verify_ms": 1e3 * verify / n, "fresh_bytes": fresh / n, "busy_bytes": busy / n}


def over_http(rows: list[Line], n: int) -> dict[str, float]:
    """CPU-ms of the server a request: seed_session, a tool call, verify."""
    token = secrets.token_urlsafe(16)
    with LocalHost() as host:
        server = host.start_environments([NAME], token)
        base = server.wait_ready()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"{base}/{NAME}", headers=headers, timeout=60, trust_env=False) as client:

            def post(path: str, body: Line, session: str = "") -> Line:
                reply = client.post(path, json=body, headers={"X-Session-Id": session} if session else {})
                client.cookies.clear()
                if reply.status_code != 200:
                    raise RuntimeError(f"{path}: {reply.status_code}: {reply.text[:300]}")
                return reply.json() if "json" in reply.headers["content-type"] else {}

            spent, calls = {"seed": 0.0, "call": 0.0, "verify": 0.0}, 0
            chosen = [rows[k % len(rows)] for k in range(n)]
            for warm in chosen[:8]:
                post("/verify", {**warm, "response": {"output": []}})
            marks = [tree_cpu_seconds(server.process.pid)]
            sessions = [post("/seed_session", row)["session_id"] for row in chosen]
            marks.append(tree_cpu_seconds(server.process.pid))
            for row, session in zip(chosen, sessions, strict=True):
                for true in row["ground_truth"]:
                    post(f"/{true['name']}", json.loads(true["arguments"]), session)
                    calls += 1
            marks.append(tree_cpu_seconds(server.process.pid))
            for row, session in zip(chosen, sessions, strict=True):
                post("/verify", {**row, "response": {"output": []}}, session)
            marks.append(tree_cpu_seconds(server.process.pid))
            for kind, count, k in (("seed", n, 0), ("call", calls, 1), ("verify", n, 2)):
                spent[kind] = 1e3 * (marks[k + 1] - marks[k]) / count
    return {f"http_{kind}_ms": value for kind, value in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=600, help="sessions over HTTP")
    parser.add_argument("--redis", action="store_true", help="sessions in a redis-server, started for it")
    arguments = parser.parse_args()
    environment = load_environment(NAME)
    assert isinstance(environment, StatefulEnvironment)
    rows = list(environment.generate(100, 0, "train"))
    n = arguments.sessions
    if arguments.redis:
        with redis_server() as (link, used):
            found = asyncio.run(in_process(environment, rows, n, RedisSessions(link, "secret", limit=n), used))
    else:
        process = psutil.Process()
        own = MemorySessions(limit=n)
        found = asyncio.run(in_process(environment, rows, n, own, lambda: float(process.memory_info().rss)))
    found |= over_http(rows, arguments.requests)
    table = [
        ["seconds a seed", found["seed_ms"] / 1e3, SEED_MS / 1e3],
        ["seconds a verify", found["verify_ms"] / 1e3, VERIFY_MS / 1e3],
        ["bytes a session, fresh", found["fresh_bytes"], BYTES],
        ["bytes a session, after its calls", found["busy_bytes"], BYTES],
        *(
            [f"CPU seconds of the server, {title}", found[f"http_{kind}_ms"] / 1e3, ""]
            for kind, title in (("seed", "POST /seed_session"), ("call", "a tool call"), ("verify", "POST /verify"))
        ),
    ]
    shown = [[title, f"{value:.6f}" if value < 1 else f"{value:.0f}", str(target)] for title, value, target in table]
    show(["", "measured", "target"], shown, {"benchmark": "workplace", "sessions": arguments.sessions, **found})


if __name__ == "__main__":
    main()
