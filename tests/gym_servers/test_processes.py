"""Several processes on one port, as a small server of its own: replaced when they die, stopped together, counted together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gym_servers.base import bind
from gym_servers.processes import MOST_DEATHS, listen
from gym_servers.protocol import OmnigymError
from gym_servers.tally import Tally

SERVER = """
import os, signal, sys
from gym_servers.processes import Processes, listen
from gym_servers.protocol import OmnigymError
sockets = listen("127.0.0.1", 0, 3)
print(sockets[0].getsockname()[1], flush=True)
def serve(number, sock):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if sys.argv[1] == "drains" else None)
    if sys.argv[1] == "broken":
        raise OSError("no such disk")
    while True:
        connection, _ = sock.accept()
        connection.sendall(b"%d %d" % (number, os.getpid()))
        connection.close()
try:
    Processes(sockets, serve, 0.5).run()
except OmnigymError as error:
    sys.exit(str(error))
"""


Started = Callable[[str], tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    started: list[subprocess.Popen[str]] = []

    def run(kind: str) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", SERVER, kind]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield run
    for process in started:
        process.kill()
        process.wait()


def ask(port: int) -> tuple[int, int]:
    """(number, process id) of a process."""
    with socket.create_connection(("127.0.0.1", port), timeout=200) as connection:
        number, pid = connection.recv(100).split()
    return int(number), int(pid)


def all_of(port: int) -> dict[int, int]:
    """Process ids by number, once each was met."""
    found: dict[int, int] = {}
    while len(found) < 3:
        number, pid = ask(port)
        found[number] = pid
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_gone(pids: list[int]) -> bool:
    end = time.monotonic() + 200
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return all(map(gone, pids))


def test_a_process_that_died_is_replaced_and_the_others_stay(start: Started, tmp_path: Path) -> None:
    _, port = start("drains")
    before = all_of(port)
    os.kill(before[1], signal.SIGKILL)
    assert wait_gone([before[1]])
    for _ in range(30):
        number, pid = ask(port)  # none is refused
        assert (pid == before[number]) == (number != 1)
    assert (
        f"server process {before[1]} (2 of 3) was killed by signal 9: it is replaced" in (tmp_path / "log").read_text()
    )


@pytest.mark.parametrize(
    ("kind", "sent"), [("drains", signal.SIGTERM), ("hangs", signal.SIGTERM), ("drains", signal.SIGINT)]
)
def test_all_are_stopped_together_and_one_that_does_not_end_is_killed(
    start: Started, kind: str, sent: signal.Signals
) -> None:
    process, port = start(kind)
    pids = list(all_of(port).values())
    process.send_signal(sent)
    assert process.wait(250) == 0
    assert all(map(gone, pids))
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_none_outlives_the_parent(start: Started) -> None:
    process, port = start("drains")
    pids = list(all_of(port).values())
    process.kill()
    assert wait_gone(pids)


def test_processes_that_keep_dying_end_the_server(start: Started, tmp_path: Path) -> None:
    process, _ = start("broken")
    assert process.wait(250) == 1
    log = (tmp_path / "log").read_text()
    assert f"{MOST_DEATHS} server processes died within" in log and "the last one ended with status 1" in log
    assert "OSError: no such disk" in log


def test_no_second_server_takes_the_port() -> None:
    sockets = listen("127.0.0.1", 0, 2)
    port = sockets[0].getsockname()[1]
    assert [one.getsockname()[1] for one in sockets] == [port, port]
    for take in (lambda: bind("127.0.0.1", port), lambda: listen("127.0.0.1", port, 2)):
        with pytest.raises(OmnigymError, match=f"127.0.0.1:{port}"):
            take()
    for one in sockets:
        one.close()


def test_all_processes_count_in_one_place_and_a_replaced_one_goes_on() -> None:
    tally = Tally(3)
    for row, seconds in ((0, 0.003), (1, 0.3), (1, 0.3), (2, 60.0)):  # row 1 dies and is followed
        child = os.fork()
        if not child:
            tally.of(row).answered(200, seconds)
            os._exit(0)
        os.waitpid(child, 0)
    tally.of(2).refused(401)
    registry = CollectorRegistry()
    registry.register(tally)
    shown = generate_latest(registry).decode().splitlines()
    assert 'omnigym_requests_total{status="200"} 4.0' in shown
    assert 'omnigym_requests_total{status="401"} 1.0' in shown
    buckets = {line.split('"')[1]: float(line.split()[-1]) for line in shown if "_bucket" in line}
    assert (buckets["0.005"], buckets["0.25"], buckets["0.5"], buckets["10.0"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    assert "omnigym_request_seconds_count 4.0" in shown
    assert "omnigym_request_seconds_sum 60.603" in shown
    assert not any('status="503"' in line for line in shown)
