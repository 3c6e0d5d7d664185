"""Programs that want out of the sandbox, want more than their share, or want to hurt who runs beside them.

One that succeeds prints ESCAPED. Numbers of system calls are those of x86-64.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from gym_servers.sandbox.attacks import ATTACKS


class Hostile(NamedTuple):
    """ends: the statuses one of which the run must have."""

    source: str
    ends: tuple[str, ...] = ("exited",)


CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) >= 0:
        print("ESCAPED: system call", *arguments)
    elif ctypes.get_errno() not in (1, 11, 22, 38):  # EPERM, EAGAIN, EINVAL, ENOSYS
        print("ESCAPED: system call", *arguments, "got as far as", os.strerror(ctypes.get_errno()))
"""
READ = """
def read(path):
    try:
        print("ESCAPED: read", path, open(path, "rb").read(20))
    except OSError:
        pass
"""
SPIN = "\nwhile True: pass"
SLEEP = "\nimport time\nwhile True: time.sleep(60)"

PROGRAMS: dict[str, Hostile] = {
    # On a busy machine the time is over before the memory is full.
    **{attack.name: Hostile(attack.source, (*attack.ends, "timed_out") if attack.ends else ("exited",)) for attack in ATTACKS},
    # files
    "secrets": Hostile(READ + "for path in ('/etc/shadow', '/etc/hostname', '/root/.bashrc', '/etc/hosts'): read(path)"),
    "proc": Hostile(
        READ + "for name in ('environ', 'mem', 'maps', 'cmdline', 'mountinfo', 'root/etc/passwd', 'cwd/x', 'fd/3'):"
        "\n for who in ('self', '1', 'thread-self'): read(f'/proc/{who}/{name}')"
    ),
    "by a descriptor of the root": Hostile(
        "import os\nroot = os.open('/', os.O_RDONLY | os.O_DIRECTORY)\n"
        "try: print('ESCAPED', os.read(os.open('etc/passwd', os.O_RDONLY, dir_fd=root), 9))\nexcept OSError: pass"
    ),
    "up and down": Hostile(READ + "for n in range(1, 12): read('../' * n + 'etc/passwd')"),
    "beside the scratch": Hostile(
        # The folders above Python's own are there, empty but for the way to it.
        f"import os\nway = set({[part for prefix in (sys.prefix, sys.base_prefix) for part in Path(prefix).parts]})\n"
        "for place in ('..', '../..', '/tmp', '/var', '/home', '/run', '/sys', '/dev', '/boot'):\n"
        " try:\n  found = set(os.listdir(place)) - way - {'scratch', 'null', 'zero', 'full', 'random', 'urandom', 'usr', 'lib', 'lib64',"
        " 'etc', 'dev'}\n"
        "  if found: print('ESCAPED: sees', place, found)\n except OSError: pass"
    ),
    "a hard link": Hostile(
        "import os\ntry:\n os.link(os.__file__, 'mine')\n print('ESCAPED: linked')\nexcept OSError: pass"
    ),
    "renaming outside": Hostile(
        "import os\nopen_ = os.path.dirname(os.__file__)\n"
        "for path in ('/usr/lib', open_, '/lib', '..'):\n"
        " try:\n  os.rename(path, path + 'x')\n  print('ESCAPED: renamed', path)\n except OSError: pass"
    ),
    "truncating outside": Hostile(
        "import os\nfor path in (os.__file__, '/etc/ld.so.cache'):\n"
        " try:\n  os.truncate(path, 0)\n  print('ESCAPED: truncated')\n except OSError: pass"
    ),
    "the installed environments": Hostile(
        "for name in ('environments', 'gym_servers', 'rl_trainer', 'pytest', 'orjson', 'pydantic'):\n"
        " try:\n  __import__(name)\n  print('ESCAPED: imported', name)\n except ImportError: pass"
    ),
    "a device": Hostile(
        "import os\nfor kind in (0o020666, 0o060666, 0o010666, 0o140666):\n"
        " try:\n  os.mknod('node', kind, os.makedev(1, 1))\n  print('ESCAPED: a node of kind', oct(kind))\n except OSError: pass"
    ),
    # privileges
    "another user": Hostile(
        "import os\nfor change in (os.setuid, os.setgid, os.seteuid, os.setegid):\n"
        " try:\n  change(0)\n  print('ESCAPED: is 0')\n except OSError: pass\n"
        "if os.getgroups() not in ([], [0]) and os.getuid() >= 60_000: print('ESCAPED: in groups', os.getgroups())"
    ),
    "namespaces": Hostile(CALL + "call(272, 0x10000000)\ncall(272, 0x20000)\ncall(308, 0, 0)"),
    "mounts": Hostile(
        CALL + "call(165, b'x', b'.', b'tmpfs', 0, None)\ncall(166, b'/scratch', 2)\ncall(161, b'.')\ncall(155, b'.', b'.')\n"
        "call(428, -100, b'.', 1)\ncall(430, b'tmpfs', 0)"
    ),
    "keys, bpf, perf, io_uring": Hostile(
        CALL + "call(250, 0, -3, 1)\ncall(321, 0, 0, 0)\ncall(298, 0, 0, -1, -1, 0)\ncall(425, 4, ctypes.create_string_buffer(200))\n"
        "call(323, 0)\ncall(304, 0, 0, 0)\ncall(135, 0xFFFFFFFF)"
    ),
    "another instruction set": Hostile(
        "import ctypes, mmap\ncode = mmap.mmap(-1, 4096, prot=7)\ncode.write(bytes.fromhex('b814000000cd80c3'))\n"  # int 0x80
        "got = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()\nprint('ESCAPED', got)",
        ("killed",),
    ),
    "x32 calls": Hostile(CALL + "call(0x40000000 + 39)"),
    "a weaker filter": Hostile(
        CALL + "call(157, 22, 2, 0)\ncall(317, 1, 0, 0)\ncall(157, 1, 0)\ncall(157, 4, 1)\ncall(157, 36, 1)"
    ),
    "larger limits": Hostile(
        "import resource\nfor name in ('AS', 'CPU', 'FSIZE', 'NPROC', 'NOFILE', 'CORE'):\n kind = getattr(resource, 'RLIMIT_' + name)\n"
        " try:\n  resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n  print('ESCAPED', name)\n"
        " except (ValueError, OSError): pass\n"
        "try:\n resource.prlimit(1, resource.RLIMIT_NOFILE)\n print('ESCAPED: of another')\nexcept OSError: pass"
    ),
    # other processes
    "signals": Hostile(
        CALL + "parent = os.getppid()\nfor pid in (parent, 0, -1, 1, -parent):\n call(62, pid, 9)\n call(234, pid, pid, 9)\n call(200, pid, 9)\n"
        "call(129, parent, 9, ctypes.create_string_buffer(128))\ncall(434, parent, 0)"
    ),
    "a signal by a descriptor": Hostile(
        "import fcntl, os\nread, write = os.pipe()\nfor command in (8, 10, 15):\n"
        " try:\n  fcntl.fcntl(read, command, os.getppid())\n  print('ESCAPED: fcntl', command)\n except OSError: pass"
    ),
    "slowing others down": Hostile(
        "import os\nfor change in (lambda: os.setpriority(0, 0, 19), lambda: os.sched_setaffinity(os.getppid(), {0}), lambda: os.nice(5)):\n"
        " try:\n  change()\n  print('ESCAPED')\n except OSError: pass"
    ),
    "fork, vfork, clone, clone3": Hostile(
        CALL + "call(57)\ncall(58)\ncall(56, 17, 0, 0, 0, 0)\ncall(56, 0x4011, 0, 0, 0, 0)\ncall(435, ctypes.create_string_buffer(88), 88)"
    ),
    "a daemon": Hostile(
        "import os, time\ntry:\n if os.fork() == 0:\n  os.setsid()\n  os.fork()\n  time.sleep(300)\nexcept OSError: pass"
    ),
    "a subprocess": Hostile(
        "import subprocess\ntry:\n print('ESCAPED', subprocess.run(['/bin/echo', 'x']))\nexcept OSError: pass"
    ),
    "posix_spawn": Hostile(
        "import os\ntry:\n os.posix_spawn('/bin/true', ['true'], {})\n print('ESCAPED')\nexcept OSError: pass"
    ),
    "shared memory and queues": Hostile(
        CALL + "call(29, 1, 4096, 0o1666)\ncall(68, 1, 0o1666)\ncall(64, 1, 1, 0o1666)\ncall(240, b'q', 0o102, 0o666, 0)\n"
        "call(319, b'm', 0)\ncall(447, 0)"
    ),
    "threads without end": Hostile(
        "import threading, time\nthreading.stack_size(32768)\nn = 0\ntry:\n while True:\n"
        "  threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n  n += 1\n  if n > 20_000: print('ESCAPED', n); break\n"
        "except RuntimeError: pass",
        ("exited", "killed"),
    ),
    # what is inherited
    "descriptors": Hostile(
        "import os\nfor fd in range(3, 4096):\n try:\n  os.fstat(fd)\n  print('ESCAPED: descriptor', fd)\n except OSError: pass"
    ),
    "the environment": Hostile(
        "import os\nleft = set(os.environ) - {'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'LC_CTYPE'}\nif left: print('ESCAPED', left)"
    ),
    "the fork server's objects": Hostile(
        "import gc, sys\nwords = [word for word in gc.get_objects() if isinstance(word, dict) and 'CANARY' in word]\n"
        "if words or any(name.startswith('gym') for name in sys.modules): print('ESCAPED')"
    ),
    "the standard input's file": Hostile(
        "import os\ntry:\n for _ in range(100): os.write(0, bytes(1 << 20))\n print('ESCAPED: 100 MB')\nexcept OSError: pass"
    ),
    # resources
    "a loop": Hostile(SPIN, ("timed_out",)),
    "a loop that ignores SIGXCPU": Hostile(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)" + SPIN, ("timed_out",)
    ),
    "a sleep": Hostile(SLEEP, ("timed_out",)),
    "asleep with its output closed": Hostile("import os\nos.close(1); os.close(2)" + SLEEP, ("timed_out",)),
    "threads that spin": Hostile(
        "import threading\ndef spin():\n while True: pass\n"
        "for _ in range(8): threading.Thread(target=spin, daemon=True).start()" + SPIN,
        ("timed_out",),
    ),
    "a regular expression": Hostile("import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", ("timed_out",)),
    "a number": Hostile("print(len(str(9 ** 9 ** 9)))", ("timed_out", "memory")),
    "a doubling list": Hostile("kept = [0]\nwhile True: kept += kept", ("memory",)),
    "memory in one piece": Hostile("bytes(1 << 40)", ("memory",)),
    "memory by mmap": Hostile(
        "import mmap\nkept = []\nfor _ in range(100): kept.append(mmap.mmap(-1, 100 << 20))\nprint('ESCAPED: 10 GB')"
    ),
    "output without a line's end": Hostile(
        "import os\nwhile True: os.write(1, b'x' * 65536)", ("output",)
    ),
    "errors without end": Hostile("import sys\nwhile True: sys.stderr.write('x' * 65536)", ("output",)),
    "many descriptors": Hostile(
        "import os\nkept = []\ntry:\n for _ in range(5000): kept.append(os.dup(0))\n print('ESCAPED: 5,000')\nexcept OSError: pass"
    ),
    "many files": Hostile(
        "n = 0\ntry:\n while n < 100_000:\n  open(f'f{n}', 'w').close()\n  n += 1\n print('ESCAPED: 100,000 files')\nexcept OSError: pass"
    ),
    "deep folders": Hostile(
        "import os\ntry:\n for _ in range(3000):\n  os.mkdir('d')\n  os.chdir('d')\nexcept OSError: pass"
    ),
    "a file with a hole": Hostile(
        "import os\ntry:\n with open('f', 'wb') as file: file.truncate(1 << 40)\n print('ESCAPED')\nexcept OSError: pass"
    ),
    "a folder nobody may enter": Hostile(
        "import os\ntry:\n os.mkdir('d', 0)\n open('f', 'w').close()\nexcept OSError: pass\nos.umask(0o777)"
    ),
    # the interpreter
    "a null pointer": Hostile("import ctypes\nctypes.string_at(0)", ("killed",)),
    "abort": Hostile("import os\nos.abort()", ("killed",)),
    "a stack without end": Hostile(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n def __getattr__(self, name): return getattr(self, name + 'x')\nA().a",
        ("killed", "memory", "timed_out", "exited"),
    ),
    "brackets": Hostile("(" * 100_000, ("exited", "memory", "killed")),
    "a null byte": Hostile("print(1)\0"),
    "a lone surrogate": Hostile("print('\udc80')"),
    "its streams gone": Hostile("import sys\nsys.stdout = sys.stderr = None\nraise ValueError"),
    "an exit handler that hangs": Hostile("import atexit\n@atexit.register\ndef spin():\n while True: pass", ("timed_out",)),
    "an exception hook": Hostile("import sys\nsys.excepthook = None\nraise BaseException(1)"),
}  # fmt: skip
