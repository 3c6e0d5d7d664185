"""Servers as local processes: started, waited for, watched, ended with this process.

A server prints its address as its first line of standard output (`omnigym env serve --port 0`, `python -m gym_servers.models.vllm`).
It leads a process group of its own, which is killed whole, and gets SIGTERM when this process dies (PR_SET_PDEATHSIG: start it
from a thread that lives as long as it should). A death is an error that names the server and shows the end of its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gym_servers.hosts.servers import Environments, Server, Servers
from gym_servers.parent import end_with_parent
from gym_servers.variables import with_variables

PORT = "{port}"
"""In a command: 0, and the port that the server had where it is started again."""


class LocalServer(Server):
    """One server process, which is started. variables: added to its environment (its token travels there, never on the command
    line)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
        restarts: int = 0,
    ) -> None:
        super().__init__(name, log, restarts)
        self.command, self.variables = command, variables or {}
        self._out = self.log.with_suffix(".out")
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        if self.url:
            self._end_group()
        port = self.url.rpartition(":")[2] or "0"
        with self._out.open("wb") as out, self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                [port if part == PORT else part for part in self.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=with_variables(self.variables),
                start_new_session=True,  # Ctrl-C is this process's to handle
                preexec_fn=end_with_parent,
            )

    def address(self) -> str:
        lines = self._out.read_text(errors="replace").split("\n")[:-1]
        return next((line.strip() for line in lines if line.startswith("http://")), "")

    def death(self) -> str:
        code = self.process.poll()
        if code is None:
            return ""
        return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 10.0) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:
                self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._end_group()
        if self._folder is not None:
            self._folder.cleanup()


def environment_server(wanted: Environments) -> LocalServer:
    """`omnigym env serve NAME...` on a free port."""
    python = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
    command = [*python, "env", "serve", "--port", PORT, *wanted.arguments()]
    variables = {"OMNIGYM_TOKEN": wanted.token, "OMP_NUM_THREADS": "1"}
    return LocalServer("the environment server", command, variables, wanted.log, wanted.restarts)


class LocalHost(Servers):
    """Servers of one command, as processes. logs: folder that keeps their logs."""

    def __init__(self, logs: Path | None = None) -> None:
        super().__init__()
        self.logs = logs

    def log_of(self, name: str) -> Path | None:
        """Where the log of server `name` stays; None: nowhere."""
        return None if self.logs is None else self.logs / f"{name.removeprefix('the ').replace(' ', '_')}.log"

    def start(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> LocalServer:
        """Start a server; it is not waited for."""
        server = LocalServer(name, command, variables, self.log_of(name))
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
        log = self.log_of("the environment server")
        server = environment_server(Environments(names, token, settings or {}, folders, log))
        self.servers.append(server)
        return server

    def start_model(self, settings: Mapping[str, Any], threads: int) -> LocalServer:
        """The model server over vLLM, with `settings` of gym_servers.models.vllm; no list of processes shows its keys."""
        shown = {key: value for key, value in settings.items() if key not in ("token", "secret")}
        hidden = {f"OMNIGYM_{key.upper()}": str(settings[key]) for key in ("token", "secret") if settings.get(key)}
        command = [sys.executable, "-m", "gym_servers.models.vllm", "--settings", json.dumps(shown)]
        return self.start("the model server", command, {"OMP_NUM_THREADS": str(threads), **hidden})
