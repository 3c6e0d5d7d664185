"""Servers as processes: ready, named when they die, gone with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gym_servers.hosts.local import LocalHost
from gym_servers.hosts.servers import ServerDied

SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen(["sleep", "300"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
print(child.pid, flush=True)
server.serve_forever()
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return gone(pid)


def test_a_server_is_ready_and_is_ended_with_its_children() -> None:
    with LocalHost() as host:
        server = host.start("the toy", [sys.executable, "-c", SERVER])
        assert server.wait_ready(30).startswith("http://127.0.0.1:")
        child = int(server._out.read_text().split()[1])
        assert not gone(server.process.pid) and not gone(child)
    assert wait_gone(server.process.pid) and wait_gone(child)


def test_a_killed_server_is_named_within_seconds() -> None:
    async def watch(host: LocalHost) -> None:
        os.kill(host.servers[0].process.pid, signal.SIGKILL)
        await asyncio.wait_for(host.watch(0.05), 5)

    with LocalHost() as host:
        host.start("the toy", [sys.executable, "-c", SERVER]).wait_ready(30)
        with pytest.raises(ServerDied, match="the toy was killed by signal 9"):
            asyncio.run(watch(host))


def test_a_server_that_cannot_start_shows_the_end_of_its_log() -> None:
    with LocalHost() as host:
        server = host.start("the toy", [sys.executable, "-c", "raise SystemExit('no such port')"])
        with pytest.raises(ServerDied, match="the toy ended with status 1; its log ends: no such port"):
            server.wait_ready(30)


def test_a_log_that_is_asked_for_stays_and_is_named(tmp_path: Path) -> None:
    with LocalHost(tmp_path / "logs") as host:
        server = host.start("the toy server", [sys.executable, "-c", "raise SystemExit('no such port')"])
        with pytest.raises(ServerDied, match=r"status 1; \S+/logs/toy_server\.log ends: no such port"):
            server.wait_ready(30)
    assert (tmp_path / "logs" / "toy_server.log").read_text() == "no such port\n"


def test_a_server_that_never_answers_is_an_error_not_a_hang() -> None:
    with LocalHost() as host:
        server = host.start("the toy", [sys.executable, "-c", "import time; time.sleep(60)"])
        with pytest.raises(ServerDied, match=r"was not ready within 0\.3 s"):
            server.wait_ready(0.3)


def test_kill_9_of_the_parent_ends_the_server(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\nfrom gym_servers.hosts.local import LocalHost\n"
        f"host = LocalHost()\nserver = host.start('toy', [sys.executable, '-c', {SERVER!r}])\n"
        "server.wait_ready(30)\nprint(server.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_gone(pid)
