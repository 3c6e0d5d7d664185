"""No hostile program gets out, hurts who runs beside it, or leaves anything behind: with namespaces, and with Landlock alone."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hostile_programs import PROGRAMS

from gym_servers.sandbox.pool import Limits, Run, Sandbox

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=0.6, memory_mb=256, output_bytes=1 << 18)
ANSWER = sum(number * number for number in range(20_000))
NEIGHBOUR = """
import sys, threading
total = 0
def add():
    global total
    total = sum(number * number for number in range(int(input())))
thread = threading.Thread(target=add)
thread.start()
thread.join()
print(total, open("given").read())
"""


@dataclass
class Ground:
    """A sandbox and the loop that it lives in."""

    runner: asyncio.Runner
    sandbox: Sandbox

    def beside(self, source: str) -> tuple[Run, Run]:
        """The run of `source`, and of a neighbour at the same time."""

        async def both() -> tuple[Run, Run]:
            hostile = self.sandbox.run(source, stdin=b"CANARY\n", limits=LIMITS)
            files = {"given": b"a file"}
            return tuple(await asyncio.gather(hostile, self.sandbox.run(NEIGHBOUR, stdin=b"20000\n", files=files)))  # type: ignore[return-value]

        return self.runner.run(both())

    def children(self) -> list[psutil.Process]:
        """Of the fork servers."""
        return [child for pid in self.sandbox.processes for child in psutil.Process(pid).children(recursive=True)]

    def files(self) -> list[Path]:
        """What lies in the scratch folders."""
        return [path for server in self.sandbox._places.values() for path in (server.folder / "scratch").glob("*")]


@pytest.fixture(scope="module", params=["namespaces", pytest.param("landlock", marks=pytest.mark.slow)])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Two fork servers, with namespaces where they can be had, and without."""
    without = ["namespaces"] if request.param == "landlock" else []
    with asyncio.Runner() as runner:
        sandbox = Sandbox(2, without=without)
        runner.run(sandbox.start())
        if not without and not sandbox.layers["namespaces"]:
            runner.run(sandbox.close())
            pytest.skip("no namespaces on this machine")
        yield Ground(runner, sandbox)
        runner.run(sandbox.close())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the system calls are those of x86-64")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_held(ground: Ground, name: str) -> None:
    before = ground.sandbox.processes
    run, neighbour = ground.beside(PROGRAMS[name].source)
    assert b"ESCAPED" not in run.stdout + run.stderr, (run.stdout, run.stderr)
    assert run.status in PROGRAMS[name].ends, run
    assert len(run.stdout) + len(run.stderr) <= LIMITS.output_bytes + (3 << 16)
    assert (neighbour.status, neighbour.exit_code, neighbour.stdout) == ("exited", 0, f"{ANSWER} a file\n".encode())
    assert ground.sandbox.processes == before, "a fork server was replaced"
    assert ground.children() == []
    assert ground.files() == []


def test_there_are_enough_of_them() -> None:
    assert len(PROGRAMS) >= 40


def test_what_a_program_was_given_and_wrote_is_not_there_for_the_next(ground: Ground) -> None:
    """The whole memory that a program can read, searched for what the run before it read, held and printed."""
    mark = "gvzqk" * 4
    leave = f"import sys\nx = '{mark}' * 1000\nprint(x)\nprint(x, file=sys.stderr)\nopen('left', 'w').write('x')"
    search = """
import ctypes, gc, os
mark = bytes(number - 1 for number in b'hw{rl') * 4
found = 0
base = id(gc) & ~0xfff
libc = ctypes.CDLL(None)
read, write = os.pipe()
for around in (id(gc), id(object()), ctypes.addressof(ctypes.create_string_buffer(1 << 16))):
    for step in range(-2048, 2048):
        page = (around & ~0xfff) + step * 4096
        if libc.write(write, ctypes.c_void_p(page), 4096) == 4096 and os.read(read, 4096).count(mark[:5]) > 50:
            found += 1
print(found, os.listdir('.') if os.getcwd() == '/scratch' else [])
"""

    async def turns() -> Run:
        for _ in ground.sandbox.processes:  # the places take turns: one of each lies before the search
            assert (await ground.sandbox.run(leave, stdin=b"gvzqk")).stdout.startswith(mark.encode())
        return await ground.sandbox.run(search)

    assert ground.runner.run(turns()).stdout == b"0 []\n"


def test_the_search_finds_what_is_there(ground: Ground) -> None:
    """The one above would find a mark that had been left."""
    here = "import ctypes, os\nmark = b'gvzqk' * 4\nkept = bytearray(mark * 1000)\n"
    here += "page = ctypes.addressof(ctypes.c_char.from_buffer(kept)) & ~0xfff\nread, write = os.pipe()\n"
    here += "print(ctypes.CDLL(None).write(write, ctypes.c_void_p(page + 4096), 4096), mark in os.read(read, 4096))"
    assert ground.runner.run(ground.sandbox.run(here)).stdout == b"4096 True\n"


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def _held(ground: Ground) -> tuple[int, int, int]:
    """Children, descriptors of the fork servers and of this process."""
    servers = ground.sandbox.processes
    return (
        len(ground.children()),
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in servers),
        len(os.listdir("/proc/self/fd")),
    )


def _many(ground: Ground, runs: int) -> None:
    ends = (
        "pass",
        "print('x' * 50_000)",
        "open('f', 'w').write('x')",
        "1 / 0",
        "import os; os.abort()",
        "bytes(1 << 40)",
    )

    async def some() -> None:
        for start in range(0, runs, 4):
            await asyncio.gather(*(ground.sandbox.run(ends[number % len(ends)]) for number in range(start, start + 4)))

    ground.runner.run(some())


@pytest.mark.parametrize("runs", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_runs_leave_nothing(ground: Ground, runs: int) -> None:
    _many(ground, 40)
    servers, held = ground.sandbox.processes, _held(ground)
    memory = sum(_resident(pid) for pid in servers)
    _many(ground, runs)
    assert ground.sandbox.processes == servers
    assert _held(ground) == held
    assert ground.files() == []
    assert sum(_resident(pid) for pid in servers) - memory < 1024, "KiB that grew"
