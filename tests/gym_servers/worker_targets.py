"""Functions that test_workers_limits.py runs in workers."""

from __future__ import annotations

import os
import time


def add(a: int, b: int) -> int:
    return a + b


def burn() -> None:
    while True:
        pass


def burn_in_c() -> int:
    return (7 ** (10**7)) % 3 + sum((7 ** (10**7)) % k for k in range(1, 50))  # long calls inside C


def burn_for(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def eat() -> int:
    return len(bytearray(1 << 30))


def die() -> None:
    os._exit(7)


def fail() -> None:
    raise ValueError("no")


def recurse() -> None:
    recurse()


def sleep() -> None:
    time.sleep(60)


def pid() -> int:
    return os.getpid()


def environment_names() -> list[str]:
    return sorted(os.environ)
