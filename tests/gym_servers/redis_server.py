"""A real Redis for tests: `redis-server` on a free loopback port, without persistence, ended with the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import need
from redis import Redis
from redis.exceptions import RedisError

from gym_servers.parent import end_with_parent

PASSWORD = "a secret of the tests"


def need_redis() -> None:
    """Skip, or fail where OMNIGYM_REQUIRE names redis, without a redis-server."""
    present = shutil.which("redis-server") is not None
    need("redis", present, "no redis-server on this machine: apt install redis-server")


class RedisServer:
    """One redis-server, which can be killed and started again on its port."""

    def __init__(self, password: str = PASSWORD) -> None:
        need_redis()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.password = password
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = tempfile.TemporaryDirectory(prefix="omnigym-redis-")
        configuration = Path(self._folder.name) / "redis.conf"
        configuration.write_text(
            f'port {self.port}\nbind 127.0.0.1\nsave ""\nappendonly no\nrequirepass "{password}"\ndir {self._folder.name}\n'
        )
        self._command = ["redis-server", str(configuration)]
        self.client = Redis(port=self.port, password=password)
        self.start()

    @property
    def variables(self) -> dict[str, str]:
        """What a server that uses it has in its environment."""
        return {"OMNIGYM_REDIS_URL": self.url, "OMNIGYM_REDIS_PASSWORD": self.password}

    def start(self) -> None:
        """Returns once it answers."""
        log = Path(self._folder.name) / "log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=end_with_parent
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                self.client.ping()
                return
            except (RedisError, OSError):
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.02)
        raise AssertionError(f"redis-server does not answer: {log.read_text()}")

    def kill(self) -> None:
        """kill -9: what it held is gone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.client.close()
        self._folder.cleanup()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """One for a test file. Tests that end it have their own."""
    server = RedisServer()
    yield server
    server.close()
