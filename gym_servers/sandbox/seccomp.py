"""The system calls that a program of the sandbox may make: a list of what is allowed, so that a new kernel allows no more.

There is no fork, no exec, no socket, no ptrace, no mount and no setting of the clock in it, no signal to anyone but the program
itself, and no change of modes, owners or times of files (Landlock does not hold those). Threads are allowed, and a pair of
connected stream sockets, which asyncio wants. One filter a run, because the program's own pid is part of it.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from typing import Final

# name, number on x86-64, number on aarch64 ("-": that architecture has none)
_PLAIN: Final = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215,
brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287, access 21 -,
faccessat 269 48, faccessat2 439 439, pipe 22 -, pipe2 293 59, select 23 -, pselect6 270 72, poll 7 -,
ppoll 271 73, sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233, dup 32 23,
dup2 33 -, dup3 292 24, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113,
clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getitimer 36 102, setitimer 38 103,
alarm 37 -, pause 34 -, getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175,
getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgrp 111 -,
getpgid 121 155, getsid 124 156, getcpu 309 168, getrusage 98 165, getrlimit 97 163, uname 63 160,
sysinfo 99 179, exit 60 93, exit_group 231 94, futex 202 98, futex_waitv 449 449, set_robust_list 273 99,
get_robust_list 274 100, set_tid_address 218 96, rseq 334 293, membarrier 324 283, getrandom 318 278,
open 2 -, openat 257 56, openat2 437 437, creat 85 -, stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291,
statfs 137 43, fstatfs 138 44, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50,
mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78,
ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83, fadvise64 221 223, umask 95 166,
copy_file_range 326 285, sendfile 40 71, splice 275 76, tee 276 77, flock 73 32, eventfd 284 -,
eventfd2 290 19, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
epoll_pwait 281 22, epoll_pwait2 441 441, timerfd_create 283 85, timerfd_settime 286 86,
timerfd_gettime 287 87, timer_create 222 107, timer_settime 223 110, timer_gettime 224 108,
timer_getoverrun 225 109, timer_delete 226 111, rt_sigpending 127 136, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, sigaltstack 131 132, sched_getaffinity 204 123, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
restart_syscall 219 128, arch_prctl 158 -, close_range 436 436, wait4 61 260, waitid 247 95,
getpriority 140 141, sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockname 51 204
"""

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE3: Final = 435
_SPECIAL: Final = ((56, 62, 234, 302, 157, 16, 72, 53), (220, 129, 131, 261, 167, 29, 25, 199))
# clone, kill, tgkill, prlimit64, prctl, ioctl, fcntl, socketpair

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ARCH, _NUMBER = 4, 0
_ERRNO, _KILL = 0x00050000, 0x80000000
_PID_HERE: Final = 0x7FFFFFF1  # larger than any pid

_CLONE_THREAD: Final = 0x10000
_CLONE_NAMESPACES: Final = 0x7E020080
_PRCTL: Final = (15, 16, 0x53564D41)  # the thread's name, and the names that glibc gives to memory
_IOCTL: Final = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTL: Final = (*range(8), 36, 37, 38, 1030, 1032)  # copies, flags and locks; not who gets signals

Instruction = tuple[int, int, int, int]
_ALLOWED: Final = (_RETURN, 0, 0, 0x7FFF0000)


def supported() -> bool:
    """Whether the numbers for this machine are known."""
    return platform.machine() in _MACHINES


def _argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index)


def _answer(error: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | error)


def _one_of(index: int, values: tuple[int, ...], error: int) -> list[Instruction]:
    """Allowed where argument `index` is one of `values`."""
    tests = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_argument(index), *tests, _answer(error), _ALLOWED]


def _rules(pid: int, column: int) -> dict[int, list[Instruction]]:
    """What is done about each system call that is not simply refused: instructions that end in an answer."""
    rules: dict[int, list[Instruction]] = {}
    for entry in _PLAIN.split(","):
        given = entry.split()[1:][column]
        if given != "-":
            rules[int(given)] = [_ALLOWED]
    clone, kill, tgkill, prlimit, prctl, ioctl, fcntl, socketpair = _SPECIAL[column]
    rules[clone] = [
        _argument(0),
        (_ANY_BIT, 0, 1, _CLONE_NAMESPACES),
        _answer(errno.EPERM),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        _answer(errno.EAGAIN),
        _ALLOWED,
    ]
    rules[_CLONE3] = [_answer(errno.ENOSYS)]  # its flags are out of a filter's reach; libc falls back to clone
    if column == 0:
        rules[57] = rules[58] = [_answer(errno.EAGAIN)]  # fork, vfork
    rules[kill] = _one_of(0, (pid,), errno.EPERM)
    rules[tgkill] = _one_of(0, (pid,), errno.EPERM)
    rules[prlimit] = _one_of(0, (0, pid), errno.EPERM)
    rules[prctl] = _one_of(0, _PRCTL, errno.EPERM)
    rules[ioctl] = _one_of(1, _IOCTL, errno.ENOTTY)
    rules[fcntl] = _one_of(1, _FCNTL, errno.EPERM)
    rules[socketpair] = [
        _argument(0),
        (_EQUAL, 1, 0, 1),  # AF_UNIX
        _answer(errno.EPERM),
        _argument(1),
        (_AND, 0, 0, 0xF),
        *[(_EQUAL, 1, 0, 1), _answer(errno.EPERM)],  # SOCK_STREAM: a datagram socket can send to any address
        _ALLOWED,
    ]
    return rules


def _tree(starts: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """A binary search over (first number, rule) in order: the kernel runs every number through it at each installation."""
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    low, high = _tree(starts[:middle]), _tree(starts[middle:])
    assert len(low) < 256, "a jump is of eight bits"
    return [(_AT_LEAST, len(low), 0, starts[middle][0]), *low, *high]


def instructions(pid: int, machine: str) -> list[Instruction]:
    """The filter for a program whose pid (as it sees it itself) is `pid`. machine: as platform.machine() names it."""
    column, audit = _MACHINES[machine]
    rules = _rules(pid, column)
    refused = [_answer(errno.EPERM)]
    starts: list[tuple[int, list[Instruction]]] = [(0, refused)]
    for number in range(max(rules) + 2):
        rule = rules.get(number, refused)
        if rule != starts[-1][1]:
            starts.append((number, rule))
    return [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER), *_tree(starts)]


class Filter:
    """The filter in the kernel's form, made before the fork: a child only puts its pid in."""

    class _Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    def __init__(self) -> None:
        code = instructions(_PID_HERE, platform.machine())
        self._data = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code), 8 * len(code))
        self._places = [8 * index + 4 for index, one in enumerate(code) if one[3] == _PID_HERE]
        self._program = self._Program(len(code), ctypes.addressof(self._data))

    def address(self, pid: int) -> int:
        """Of the kernel's `struct sock_fprog`, for the program `pid`; valid as long as this object."""
        for place in self._places:
            struct.pack_into("=I", self._data, place, pid)
        return ctypes.addressof(self._program)
