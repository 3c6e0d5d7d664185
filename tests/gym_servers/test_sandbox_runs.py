"""A program of the sandbox runs as plain Python would run it; what is the sandbox's own fault is a failure, and mends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_servers.protocol import FailureError, OmnigymError
from gym_servers.sandbox.pool import Limits, Run, Sandbox, SandboxUnavailable
from gym_servers.sandbox.seccomp import Instruction, instructions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The loop of the module's sandbox."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def sandbox(runner: asyncio.Runner) -> Iterator[Sandbox]:
    """One fork server, with the layers that this machine has."""
    sandbox = Sandbox(1)
    runner.run(sandbox.start())
    yield sandbox
    runner.run(sandbox.close())


PLAIN = {
    "main": "if __name__ == '__main__':\n def f():\n  return g\n g = 7\n print(f(), __file__.endswith('.py'))",
    "input": "print(input(), open(0).read(), end='')",
    "lines": "import sys\nfor line in sys.stdin: print(line[::-1])\nprint(sys.stdin.read() == '')",
    "bytes": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])",
    "exit 3": "import sys\nprint('é')\nsys.exit(3)",
    "exit text": "import sys\nsys.exit('no')",
    "exit None": "exit()",
    "exit -1": "raise SystemExit(-1)",
    "_exit": "import os\nprint('lost')\nos._exit(5)",
    "raise": "def f(x):\n return 1 / x\nf(0)",
    "syntax": "print(1\nprint(2)",
    "threads": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()\nprint('soon')",
    "atexit": "import atexit\natexit.register(print, 'bye')\nprint('hi')",
    "unflushed": "out = open(1, 'w', closefd=False)\nout.write('kept')",
    "recursion": "def f(n): return n and f(n - 1)\nprint(f(900))\ntry: f(2000)\nexcept RecursionError: print('deep')",
    "future": "print(__annotations__ if '__annotations__' in globals() else None)\nx: int = 1\nprint(list(__annotations__))",
    "coding": "# -*- coding: latin-1 -*-\nprint('ok')",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n x: int\nprint(P(1))",
    "no newline at the end of the input": "import sys\nprint(sys.stdin.readlines())",
}


@pytest.mark.parametrize("name", PLAIN)
def test_it_runs_as_plain_python(runner: asyncio.Runner, sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    stdin = "first\nzweite Zeile ü\n\nlast".encode()
    (tmp_path / "main.py").write_text(PLAIN[name])
    plain = subprocess.run(
        [sys.executable, "-X", "utf8", "main.py"], cwd=tmp_path, input=stdin, capture_output=True, timeout=100, env={}
    )
    run = runner.run(sandbox.run(PLAIN[name], stdin=stdin))
    assert (run.status, run.exit_code, run.stdout) == ("exited", plain.returncode, plain.stdout), run.stderr
    assert run.stderr.strip().splitlines()[-1:] == plain.stderr.strip().splitlines()[-1:]


def test_files_lie_in_its_folder(runner: asyncio.Runner, sandbox: Sandbox) -> None:
    source = "import os, solution\nprint(sorted(os.listdir()), solution.f(2), open('data').read())"
    files = {"solution.py": b"def f(x): return x + 1", "data": b"d"}
    assert runner.run(sandbox.run(source, files=files)).stdout == b"['data', 'solution.py'] 3 d\n"
    assert runner.run(sandbox.run("import os; print(os.listdir())")).stdout == b"[]\n"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/x", "a\0", "x" * 256])
def test_a_file_s_name_is_a_plain_one(runner: asyncio.Runner, sandbox: Sandbox, name: str) -> None:
    with pytest.raises(OmnigymError, match="plain file name"):
        runner.run(sandbox.run("pass", files={name: b""}))


@given(stdin=st.binary(max_size=200_000))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_standard_input_arrives_whole(runner: asyncio.Runner, sandbox: Sandbox, stdin: bytes) -> None:
    source = "import sys\ndata = sys.stdin.buffer.read()\nsys.stdout.buffer.write(data)"
    assert runner.run(sandbox.run(source, stdin=stdin)).stdout == stdin


def test_runs_do_not_depend_on_each_other(runner: asyncio.Runner, sandbox: Sandbox) -> None:
    """The same program prints the same, whatever ran before: builtins and modules are as new, the hash seed is fixed. What is random
    is not the same twice."""
    spoil = "import builtins, math, sys\nbuiltins.print = None\nmath.pi = 3\nsys.modules['json'] = None"
    show = "import math, json\nprint(list({'a', 'b', 'c', 'd'}), math.pi)"
    first = runner.run(sandbox.run(show))
    runner.run(sandbox.run(spoil))
    assert runner.run(sandbox.run(show)).stdout == first.stdout != b""
    draw = "import random\nprint(random.random())"
    assert len({runner.run(sandbox.run(draw)).stdout for _ in range(4)}) == 4


def test_limits_are_those_asked_for(runner: asyncio.Runner, sandbox: Sandbox) -> None:
    grow = "x = bytearray({} << 20)\nprint(len(x))"
    assert runner.run(sandbox.run(grow.format(300), limits=Limits(memory_mb=200))).status == "memory"
    assert runner.run(sandbox.run(grow.format(300), limits=Limits(memory_mb=400))).exit_code == 0
    run = runner.run(sandbox.run("while True: pass", limits=Limits(cpu_seconds=0.2)))
    assert run.status == "timed_out" and run.exit_code is None and 0.2 <= run.cpu_seconds < 1.2
    write = "import sys\nsys.stdout.write('x' * 1000)\nsys.stderr.write('y' * 1000)"
    assert runner.run(sandbox.run(write, limits=Limits(output_bytes=2000))).status == "exited"
    cut = runner.run(sandbox.run(write, limits=Limits(output_bytes=1500)))
    assert cut.status == "output" and len(cut.stdout) <= 1500
    slept = runner.run(
        sandbox.run("import time\nprint(1, flush=True)\ntime.sleep(99)", limits=Limits(wall_seconds=0.5))
    )
    assert (slept.status, slept.stdout) == ("timed_out", b"1\n") and slept.cpu_seconds < 0.4


def _program_of(pid: int) -> psutil.Process:
    """The program that the fork server `pid` runs now."""
    while True:
        if children := psutil.Process(pid).children(recursive=True):
            return children[0]
        time.sleep(0.01)


def _gone(pid: int) -> bool:
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_fork_server_killed_in_a_run_is_a_failure_and_the_next_run_works() -> None:
    async def scene() -> None:
        async with Sandbox(1) as sandbox:
            (pid,) = sandbox.processes
            run = asyncio.create_task(sandbox.run("import time\ntime.sleep(60)"))
            program = (await asyncio.to_thread(_program_of, pid)).pid
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(FailureError) as raised:
                await run
            assert raised.value.failure.kind == "environment_down" and raised.value.failure.retryable
            assert await asyncio.to_thread(_gone, program), "the program outlived its fork server"
            assert (await sandbox.run("print(1)")).stdout == b"1\n"
            os.kill(sandbox.processes[0], signal.SIGKILL)  # and one that dies idle costs nobody a run
            assert await asyncio.to_thread(_gone, sandbox.processes[0])
            assert (await sandbox.run("print(2)")).stdout == b"2\n"

    asyncio.run(scene())


def test_a_run_that_nobody_waits_for_ends() -> None:
    async def scene() -> None:
        async with Sandbox(1) as sandbox:
            (pid,) = sandbox.processes
            run = asyncio.create_task(sandbox.run("while True: pass", limits=Limits(cpu_seconds=300)))
            program = (await asyncio.to_thread(_program_of, pid)).pid
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert await asyncio.to_thread(_gone, program)
            assert (await sandbox.run("print(1)")).stdout == b"1\n"

    asyncio.run(scene())


def test_closing_ends_what_runs_and_who_waits() -> None:
    async def scene() -> None:
        sandbox = Sandbox(1)
        await sandbox.start()
        folders = [server.folder for server in sandbox._places.values()]
        runs = [asyncio.create_task(sandbox.run("import time\ntime.sleep(60)")) for _ in range(3)]
        await asyncio.to_thread(_program_of, sandbox.processes[0])
        await sandbox.close()
        ended = await asyncio.gather(*runs, return_exceptions=True)
        assert all(isinstance(one, FailureError) for one in ended), ended
        assert not any(folder.exists() for folder in folders)
        with pytest.raises(FailureError, match="not started"):
            await sandbox.run("pass")

    asyncio.run(scene())


OWNER = """
import asyncio, sys
from gym_servers.sandbox.pool import Sandbox
async def main():
    async with Sandbox(1) as sandbox:
        print(sandbox.processes[0], flush=True)
        await sandbox.run("import time; time.sleep(60)")
asyncio.run(main())
"""


def test_nothing_outlives_a_killed_server() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)})
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    program = _program_of(pid).pid
    owner.kill()
    owner.wait()
    assert _gone(program) and _gone(pid)


def test_the_folder_of_a_killed_server_goes_when_the_next_starts_and_a_living_one_s_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    (folder,) = tmp_path.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def another() -> None:
        async with Sandbox(1) as sandbox:
            assert (await sandbox.run("print(1)")).stdout == b"1\n"

    os.utime(folder, (0, 0))  # as if from long ago
    asyncio.run(another())
    assert list(tmp_path.iterdir()) == [folder]
    owner.kill()
    owner.wait()
    assert _gone(pid)
    os.utime(folder, (0, 0))
    asyncio.run(another())
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()  # one that was made a moment ago, and that its maker is about to lock
    asyncio.run(another())
    assert list(tmp_path.iterdir()) == [folder]


def test_more_runs_than_servers_wait_their_turn(runner: asyncio.Runner, sandbox: Sandbox) -> None:
    async def many() -> list[Run]:
        return await asyncio.gather(*(sandbox.run(f"print({number})") for number in range(20)))

    assert [run.stdout for run in runner.run(many())] == [f"{number}\n".encode() for number in range(20)]


def test_where_nothing_isolates_it_refuses_unless_told() -> None:
    async def scene(without: list[str]) -> None:
        with pytest.raises(SandboxUnavailable, match="insecure: true"):
            await Sandbox(1, without=without).start()
        async with Sandbox(1, insecure=True, without=without) as sandbox:
            assert (await sandbox.run("print(6 * 7)")).stdout == b"42\n"

    asyncio.run(scene(["seccomp"]))
    asyncio.run(scene(["namespaces", "landlock"]))
    with pytest.raises(OmnigymError, match="no layer"):
        Sandbox(without=["luck"])


# -- the filter, on both architectures ---------------------------------------------------------------------------------

ALLOW, EPERM, EAGAIN, ENOSYS, ENOTTY, KILL = 0x7FFF0000, 0x50001, 0x5000B, 0x50026, 0x50019, 0x80000000


def answer(code: list[Instruction], machine: int, number: int, *arguments: int) -> int:
    """What the kernel's interpreter would say."""
    data = {0: number, 4: machine, **{16 + 8 * place: value for place, value in enumerate(arguments)}}
    accumulator, at = 0, 0
    while True:
        operation, true, false, k = code[at]
        at += 1
        if operation == 0x20:
            accumulator = data.get(k, 0)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x06:
            return k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[operation]
            at += true if holds else false


X86 = {
    "read": 0, "openat": 257, "mmap": 9, "futex": 202, "exit_group": 231, "close_range": 436, "clone": 56, "clone3": 435, "kill": 62,
    "tgkill": 234, "prlimit64": 302, "prctl": 157, "ioctl": 16, "fcntl": 72, "socketpair": 53, "socket": 41, "connect": 42, "bind": 49,
    "execve": 59, "execveat": 322, "ptrace": 101, "chmod": 268, "utimensat": 280, "chown": 260, "setxattr": 188, "truncate": 76,
    "memfd_create": 319, "clock_settime": 227, "adjtimex": 159, "mount": 165, "unshare": 272, "bpf": 321, "io_uring_setup": 425,
    "pidfd_open": 434, "process_vm_readv": 310, "setuid": 105, "seccomp": 317, "tkill": 200, "unknown": 999, "x32": 0x40000000,
}  # fmt: skip
ARM = {
    "read": 63, "openat": 56, "mmap": 222, "futex": 98, "exit_group": 94, "close_range": 436, "clone": 220, "clone3": 435, "kill": 129,
    "tgkill": 131, "prlimit64": 261, "prctl": 167, "ioctl": 29, "fcntl": 25, "socketpair": 199, "socket": 198, "connect": 203,
    "bind": 200, "execve": 221, "execveat": 281, "ptrace": 117, "chmod": 53, "utimensat": 88, "chown": 54, "setxattr": 5,
    "truncate": 45, "memfd_create": 279, "clock_settime": 112, "adjtimex": 171, "mount": 40, "unshare": 97, "bpf": 280,
    "io_uring_setup": 425, "pidfd_open": 434, "process_vm_readv": 270, "setuid": 146, "seccomp": 277, "tkill": 130, "unknown": 999,
    "x32": 0x40000000,
}  # fmt: skip
CASES = [
    *[(name, (), ALLOW) for name in ("read", "openat", "mmap", "futex", "exit_group", "close_range")],
    *[(name, (), EPERM) for name in list(X86)[list(X86).index("socket") :]],
    ("clone", (0x3D0F00,), ALLOW), ("clone", (17,), EAGAIN), ("clone", (0x3D0F00 | 0x10000000,), EPERM), ("clone", (0x80,), EPERM),
    ("clone3", (), ENOSYS), ("kill", (777, 9), ALLOW), ("kill", (1, 9), EPERM), ("kill", (0xFFFFFFFF, 9), EPERM), ("kill", (0, 9), EPERM),
    ("tgkill", (777, 778, 6), ALLOW), ("tgkill", (1, 1, 6), EPERM), ("prlimit64", (0,), ALLOW), ("prlimit64", (777,), ALLOW),
    ("prlimit64", (1,), EPERM), ("prctl", (15,), ALLOW), ("prctl", (1,), EPERM), ("prctl", (22,), EPERM), ("ioctl", (1, 0x5401), ALLOW),
    ("ioctl", (1, 0x5412), ENOTTY), ("ioctl", (1, 0x8901), ENOTTY), ("fcntl", (0, 3), ALLOW), ("fcntl", (0, 1030), ALLOW),
    ("fcntl", (0, 8), EPERM), ("fcntl", (0, 15), EPERM), ("socketpair", (1, 0x80001), ALLOW), ("socketpair", (1, 2), EPERM),
    ("socketpair", (2, 1), EPERM),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "audit", "numbers"), [("x86_64", 0xC000003E, X86), ("aarch64", 0xC00000B7, ARM)])
def test_the_filter_s_answers(machine: str, audit: int, numbers: dict[str, int]) -> None:
    code = instructions(777, machine)
    assert all(0 <= jump < 256 for one in code for jump in one[1:3])
    for name, arguments, expected in CASES:
        assert answer(code, audit, numbers[name], *arguments) == expected, (name, arguments)
    assert answer(code, 0x40000003, numbers["read"]) == KILL, "another architecture's calls"


# -- as somebody without privileges, where namespaces are forbidden ----------------------------------------------------

UNPRIVILEGED = """
import asyncio, json, os, sys
sys.path.insert(0, "tests/gym_servers")
from hostile_programs import PROGRAMS
from gym_servers.sandbox.pool import Limits, Sandbox
async def main():
    wrong = []
    async with Sandbox(2) as sandbox:
        print(json.dumps(sandbox.layers))
        limits = Limits(cpu_seconds=0.3, wall_seconds=0.6, memory_mb=256, output_bytes=1 << 18)
        for name, hostile in PROGRAMS.items():
            run, beside = await asyncio.gather(sandbox.run(hostile.source, limits=limits), sandbox.run("print(sum(range(99)))"))
            if b"ESCAPED" in run.stdout or run.status not in hostile.ends or beside.stdout != b"4851\\n":
                wrong.append((name, repr(run)[:500]))
    print(json.dumps(wrong))
asyncio.run(main())
"""
FORBID = (
    'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all "$@"'
)


@pytest.mark.slow
def test_without_privileges_and_namespaces_landlock_and_seccomp_hold() -> None:
    """As uid 1000, in a user namespace in which no further one may be made: what a hardened container allows."""
    python = shutil.which("python3.11", path="/usr/bin:/usr/local/bin")
    if os.geteuid() != 0 or python is None or shutil.which("unshare") is None:
        pytest.skip("needs root, and a Python that every user may read, to become somebody else")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
         "unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", FORBID, "sh", python, "-c", UNPRIVILEGED],
        cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{packages}", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    layers, wrong = done.stdout.splitlines()
    assert '"namespaces": false' in layers and '"landlock": 0' not in layers and '"seccomp": true' in layers
    assert wrong == "[]"
