"""The layers between a program and the machine, by system calls of Linux through ctypes (x86-64 and aarch64).

Imported by the fork server, so only the standard library. Order in a forked child: files (a namespace of its own, entered once by the
fork server), user id, limits, Landlock, seccomp. Each layer says whether it is in force; nothing here decides what suffices.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence

from gym_servers.sandbox.seccomp import Filter, supported

LIBC = ctypes.CDLL(None, use_errno=True)
_ARM = platform.machine() == "aarch64"

NEWNS, NEWIPC, NEWUSER, NEWNET = 0x20000, 0x08000000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_MOUNT_SETATTR, _SYS_PIVOT_ROOT, _SYS_CAPSET = 442, (41 if _ARM else 155), (91 if _ARM else 126)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


# -- files and network: namespaces -------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Namespaces of its own for this process. Raises OSError."""
    if LIBC.unshare(flags):
        raise _failed("unshare")


def map_user(uid: int, gid: int) -> None:
    """In a new user namespace: root inside is `uid` outside. Raises OSError."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises OSError."""
    given = [part.encode() if part is not None else None for part in (source, target, kind)]
    if LIBC.mount(*given, ctypes.c_ulong(flags), data.encode() if data else None):
        raise _failed(f"mount {target}")


def unmount(target: str) -> None:
    """Detach what is mounted at `target`, whatever uses it. Raises OSError."""
    if LIBC.umount2(target.encode(), _MNT_DETACH):
        raise _failed(f"umount {target}")


def mount_scratch(target: str, size_mb: int, uid: int, gid: int) -> None:
    """An empty folder in memory of at most `size_mb` and 4,096 entries, of that user alone. Raises OSError."""
    mount(
        "scratch",
        target,
        "tmpfs",
        _MS_NOSUID | _MS_NODEV,
        f"size={size_mb}m,nr_inodes=4096,mode=700,uid={uid},gid={gid}",
    )


def _bind(source: str, target: str) -> None:
    """`source` at `target`, read-only with all below it."""
    mount(source, target, None, _MS_BIND | _MS_REC)
    attributes = struct.pack("QQQQ", 1, 0, 0, 0)  # set MOUNT_ATTR_RDONLY, keep the rest
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    if LIBC.syscall(_SYS_MOUNT_SETATTR, -100, target.encode(), 0x8000, buffer, len(attributes)):
        raise _failed(f"mount_setattr {target}")


def _place(path: str, target: str) -> None:
    """`path` visible at `target`, read-only; a device stays a device."""
    if os.path.isdir(path):
        os.makedirs(target, 0o755, exist_ok=True)
        _bind(path, target)
    elif os.path.exists(path):
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        with open(target, "x"):
            pass
        mount(path, target, None, _MS_BIND) if path.startswith("/dev/") else _bind(path, target)


def enter_root(folder: str, visible: Iterable[str], hidden: Iterable[str], shown: Iterable[str], scratch: str) -> None:
    """Make `folder` the root of this process's own mount namespace: `visible` read-only at their places but without the folders
    `hidden`, of which only `shown` are there, an empty `scratch`, and nothing else. Raises OSError."""
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    mount("root", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in visible:
        if os.path.islink(path) and os.path.dirname(path) == "/":  # /lib -> usr/lib
            os.symlink(os.readlink(path), folder + path)
        elif not os.path.ismount(folder + path):
            _place(path, folder + path)
    for path in hidden:
        if os.path.isdir(path):
            if not os.path.isdir(folder + path):
                os.makedirs(folder + path, 0o755)
            mount("hidden", folder + path, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in shown:
        _place(path, folder + path)
    os.makedirs(folder + scratch, 0o755)
    os.chdir(folder)
    if LIBC.syscall(_SYS_PIVOT_ROOT, b".", b"."):
        raise _failed("pivot_root")
    unmount(".")
    os.chdir("/")


# -- files without namespaces: Landlock --------------------------------------------------------------------------


def landlock_abi() -> int:
    """Version of Landlock that the kernel has; 0 for none."""
    return max(0, int(LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1)))


_READ_FILE, _READ_DIR, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1


def landlock_rules(abi: int, readable: Sequence[str], listable: Sequence[str], devices: Sequence[str]) -> int:
    """A descriptor of the rules: `readable` with all below, `listable` without, nothing else; no TCP, no signal to outside. Raises
    OSError."""
    every = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    handled = ctypes.create_string_buffer(struct.pack("QQQ", every, 3, 3)[:size], size)
    rules: int = LIBC.syscall(_LANDLOCK_CREATE, handled, size, 0)
    if rules < 0:
        raise _failed("landlock_create_ruleset")
    for paths, access in (
        (readable, _READ_FILE | _READ_DIR),
        (listable, _READ_DIR),
        (devices, _READ_FILE | _WRITE_FILE),
    ):
        for path in paths:
            try:
                opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # what is not there needs no rule
            rule = struct.pack("=Qi", access if os.path.isdir(path) else access & ~_READ_DIR, opened)
            if LIBC.syscall(_LANDLOCK_ADD, rules, 1, ctypes.create_string_buffer(rule, len(rule)), 0):
                raise _failed(f"landlock_add_rule {path}")
            os.close(opened)
    return rules


def landlock(rules: int) -> None:
    """From now on this process opens what `rules` allow and no more. Raises OSError."""
    no_new_privileges()
    if LIBC.syscall(_LANDLOCK_RESTRICT, rules, 0):
        raise _failed("landlock_restrict_self")
    os.close(rules)


# -- privileges and resources ------------------------------------------------------------------------------------


def no_new_privileges() -> None:
    """Nothing executed later gains a privilege. Raises OSError."""
    if LIBC.prctl(38, 1, 0, 0, 0):
        raise _failed("no_new_privs")


def become(uid: int, gid: int) -> None:
    """Root becomes that user, for good. Raises OSError."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def end_with_parent() -> None:
    """This process is killed when its parent ends; programs cannot take that back."""
    LIBC.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def drop_capabilities() -> None:
    """Root of a user namespace keeps none of its capabilities. Raises OSError."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    if LIBC.syscall(_SYS_CAPSET, header, ctypes.create_string_buffer(24)):
        raise _failed("capset")


def limit(cpu_seconds: int, memory_bytes: int, file_bytes: int, tasks: int | None) -> None:
    """Hard limits of this process. tasks: threads of its user id."""
    if tasks is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (tasks, tasks))
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 64, 64),
    ):
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


# -- system calls: seccomp ---------------------------------------------------------------------------------------

_FILTER = Filter() if supported() else None


def seccomp() -> None:
    """The filter of seccomp.py, for good. Raises OSError."""
    if _FILTER is None:
        raise OSError(errno.ENOSYS, f"the numbers of {platform.machine()}'s system calls are not in seccomp.py")
    no_new_privileges()
    if LIBC.prctl(22, 2, ctypes.c_void_p(_FILTER.address(os.getpid())), 0, 0):
        raise _failed("seccomp")
