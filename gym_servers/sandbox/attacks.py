"""What a program might try against the machine, as programs: `omnigym sandbox doctor` runs them, and says what came of each.

A program that gets what it is after prints ESCAPED and what it got. An attack on a resource is held by its limit: what must come of
it is a status of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gym_servers.sandbox.pool import Limits, Run, Sandbox

FILES, CALLS, LIMIT = "files", "seccomp", "rlimit"


@dataclass(frozen=True)
class Attack:
    """One attempt. by: what holds it. ends: the statuses one of which the run must have; empty: any."""

    name: str
    source: str
    by: str
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of an attack."""

    attack: Attack
    held: bool
    happened: str
    by: str


LIMITS = Limits(cpu_seconds=2.0, wall_seconds=4.0, memory_mb=512)

ATTACKS = (
    Attack(
        "the network",
        """
import ctypes, socket
for family, kind in ((2, 1), (2, 2), (10, 1), (1, 1), (1, 2), (16, 3), (17, 3)):
    try:
        socket.socket(family, kind)
        print("ESCAPED: a socket of family", family)
    except OSError as error:
        problem = error
try:
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    print("ESCAPED: a datagram socket")
except OSError as error:
    problem = error
raise problem
""",
        CALLS,
    ),
    Attack("reading /etc/passwd", "print('ESCAPED:', open('/etc/passwd').readline())", FILES),
    Attack(
        "seeing other processes",
        """
import os
try:
    seen = [name for name in os.listdir('/proc') if name.isdigit()]
    print("ESCAPED: sees", len(seen), "processes")
except OSError as error:
    problem = error
for pid in (1, os.getppid(), -1):
    try:
        os.kill(pid, 0)
        print("ESCAPED: may signal", pid)
    except OSError as error:
        problem = error
raise problem
""",
        f"{FILES}, {CALLS}",
    ),
    Attack(
        "writing outside",
        """
import os
for folder in ('/', '/tmp', '/var/tmp', '/dev/shm', '/usr/lib', '/etc', '..', os.path.dirname(os.__file__)):
    try:
        with open(os.path.join(folder, 'omnigym_was_here'), 'w') as file:
            file.write('x')
        os.unlink(file.name)
        print("ESCAPED: wrote in", folder)
    except OSError as error:
        problem = error
raise problem
""",
        FILES,
    ),
    Attack(
        "forking without end",
        """
import os
while True:
    if os.fork() == 0:
        os.write(1, b"ESCAPED: forked\\n")
""",
        CALLS,
    ),
    Attack(
        "10 GB of memory",
        """
kept = []
for _ in range(10 * 1024):
    kept.append(bytearray(1 << 20))
print("ESCAPED: has 10 GB")
""",
        LIMIT,
        ("memory",),
    ),
    Attack(
        "filling the disk",
        """
written = 0
for number in range(1000):
    with open(f"file{number}", "wb", buffering=0) as file:
        for _ in range(16):
            written += file.write(bytes(1 << 20))
            if written > 64 << 20:
                raise SystemExit("ESCAPED: wrote 64 MB")
""",
        FILES,
        ("exited",),
    ),
    Attack("endless output", "while True: print('x' * 100_000)", "the fork server", ("output",)),
    Attack(
        "ignoring SIGTERM",
        """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    time.sleep(60)
""",
        "the fork server",
        ("timed_out",),
    ),
    Attack(
        "a symlink out of the folder",
        """
import os
os.symlink('/etc/passwd', 'link')
print('ESCAPED:', open('link').readline())
""",
        FILES,
    ),
    Attack(
        "reading the grader's memory",
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
problem = None
for pid in (parent, 1):
    for what in ('mem', 'maps', 'environ', 'cmdline'):
        try:
            open(f'/proc/{pid}/{what}', 'rb').read(1)
            print('ESCAPED: read', what, 'of', pid)
        except OSError as error:
            problem = error
    if libc.ptrace(16, pid, 0, 0) == 0:
        print('ESCAPED: traces', pid)
    class Part(ctypes.Structure):
        _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
    space = ctypes.create_string_buffer(8)
    ours, theirs = Part(ctypes.addressof(space), 8), Part(id(problem), 8)
    if libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) > 0:
        print('ESCAPED: reads the memory of', pid)
raise problem
""",
        f"{FILES}, {CALLS}",
    ),
    Attack(
        "the clock",
        """
import time
time.clock_settime(time.CLOCK_REALTIME, time.time())
print('ESCAPED: set the clock')
""",
        CALLS,
    ),
    Attack(
        "changing modes outside",
        """
import os
problem = None
for path in (os.__file__, '..', '/'):
    for change in (lambda: os.chmod(path, 0o755), lambda: os.utime(path), lambda: os.chown(path, os.getuid(), os.getgid())):
        try:
            change()
            print('ESCAPED: changed', path)
        except OSError as error:
            problem = error
raise problem
""",
        CALLS,
    ),
    Attack("another program", "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED: a shell'])", CALLS),
)


def judge(attack: Attack, run: Run, layers: Mapping[str, Any]) -> Result:
    """Whether it was held."""
    said = run.stdout[:4096].decode(errors="replace")
    said_badly = run.stderr[-4096:].decode(errors="replace")
    escaped = [line for line in (said + said_badly).splitlines() if line.startswith("ESCAPED")]
    held = not escaped and (not attack.ends or run.status in attack.ends)
    last = said_badly.strip().splitlines()[-1:] or [f"{run.status} after {run.wall_seconds:.1f} s"]
    happened = escaped[0] if escaped else last[0] if run.status == "exited" else run.status
    files = "mount namespace" if layers["namespaces"] else f"Landlock {layers['landlock']}"
    return Result(attack, held, happened, attack.by.replace(FILES, files))


async def attempt(sandbox: Sandbox) -> list[Result]:
    """Each attack in `sandbox`. Raises FailureError where the sandbox itself broke."""
    return [judge(attack, await sandbox.run(attack.source, limits=LIMITS), sandbox.layers) for attack in ATTACKS]
