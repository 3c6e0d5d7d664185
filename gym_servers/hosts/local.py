"""Servers as local processes: started, waited for, watched, ended with this process.

A server prints its address as its first line of standard output (`omnigym env serve --port 0`, `python -m gym_servers.models.vllm`).
It leads a process group of its own, which is killed whole, and gets SIGTERM when this process dies (PR_SET_PDEATHSIG: start it
from a thread that lives as long as it should). A death is an error that names the server and shows the end of its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from gym_servers.parent import end_with_parent
from gym_servers.protocol import OmnigymError
from gym_servers.variables import with_variables

LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine: they never go through a proxy."""


class ServerDied(OmnigymError):
    """A server process is gone, or was not ready in time."""


def _as_yaml(value: Any) -> str:
    """One line that YAML reads as `value`; of JSON it would take 1e-05 for text."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


class LocalServer:
    """One server process. variables: added to its environment (its token travels there, never on the command line).

    log: where its log stays; without one it goes when the server is stopped.
    """

    def __init__(
        self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        self.name = name
        self.url = ""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if log is None:
            self._folder = tempfile.TemporaryDirectory(prefix="omnigym-server-")
            log = Path(self._folder.name) / "server.log"
        self._log = log
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._log.with_suffix(".out")
        with self._out.open("wb") as out, self._log.open("wb") as errors:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=with_variables(variables or {}),
                start_new_session=True,  # Ctrl-C is this process's to handle
                preexec_fn=end_with_parent,
            )

    def log_tail(self) -> str:
        """Where its log is, if it stays, and its last lines as one."""
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        where = "its log" if self._folder is not None else str(self._log)
        return f"{where} ends: {' | '.join(lines[-3:]) or '(nothing)'}"

    def check(self) -> None:
        """Raises ServerDied."""
        code = self.process.poll()
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise ServerDied(f"{self.name} {how}; {self.log_tail()}")

    def wait_ready(self, seconds: float = 120.0) -> str:
        """Its address, once /readyz answers 200. Raises ServerDied."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            lines = self._out.read_text(errors="replace").split("\n")[:-1]
            address = next((line.strip() for line in lines if line.startswith("http://")), "")
            if address:
                with contextlib.suppress(OSError), LOOPBACK.open(f"{address}/readyz", timeout=5):
                    self.url = address
                    return address
            time.sleep(0.05)
        raise ServerDied(f"{self.name} was not ready within {seconds:g} s; {self.log_tail()}")

    def stop(self, seconds: float = 10.0) -> None:
        """Let it drain, then kill its process group. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:
                self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._folder is not None:
            self._folder.cleanup()


class LocalHost:
    """Servers of one command: a context that ends all of them in whichever way it is left. logs: folder that keeps theirs."""

    def __init__(self, logs: Path | None = None) -> None:
        self.servers: list[LocalServer] = []
        self.logs = logs

    def __enter__(self) -> LocalHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in reversed(self.servers):
            server.stop()

    def start(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> LocalServer:
        """Start a server; it is not waited for."""
        log = None if self.logs is None else self.logs / f"{name.removeprefix('the ').replace(' ', '_')}.log"
        server = LocalServer(name, command, variables, log)
        self.servers.append(server)
        return server

    def start_environments(
        self,
        names: Sequence[str],
        token: str,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        folders: Sequence[Path] = (),
    ) -> LocalServer:
        """`omnigym env serve NAME...` on a free port. settings: by environment, on top of its environment.yaml. folders: of
        environments that are not installed."""
        python = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
        variables = {"OMNIGYM_TOKEN": token, "OMP_NUM_THREADS": "1"}
        chosen = [
            f"--set={name}.{key}={_as_yaml(value)}"
            for name, values in (settings or {}).items()
            for key, value in values.items()
        ]
        paths = [f"--path={folder}" for folder in folders]
        command = [*python, "env", "serve", *names, "--port", "0", *chosen, *paths]
        return self.start("the environment server", command, variables)

    def start_model(self, settings: Mapping[str, Any], threads: int) -> LocalServer:
        """The model server over vLLM, with `settings` of gym_servers.models.vllm; no list of processes shows its keys."""
        shown = {key: value for key, value in settings.items() if key not in ("token", "secret")}
        hidden = {f"OMNIGYM_{key.upper()}": str(settings[key]) for key in ("token", "secret") if settings.get(key)}
        command = [sys.executable, "-m", "gym_servers.models.vllm", "--settings", json.dumps(shown)]
        return self.start("the model server", command, {"OMP_NUM_THREADS": str(threads), **hidden})

    def check(self) -> None:
        """Raises ServerDied for the first that is gone."""
        for server in self.servers:
            server.check()

    async def watch(self, seconds: float = 0.5) -> None:
        """Look every `seconds`, for ever. Raises ServerDied."""
        while True:
            self.check()
            await asyncio.sleep(seconds)
