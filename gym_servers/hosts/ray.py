"""Environments in a Ray actor: the same ASGI app under uvicorn, all traffic is HTTP.

Ray chooses the node. On the node of this process the server listens on loopback, on any other on the node's address in the cluster's
network. Its log goes to the run's folder where that node has it, else it is with Ray's. The actor ends with the job of this process,
also where that is killed. One that is started again may come up elsewhere.

Ray must be up (ray.init). All calls into it are made from a thread of their own: it swallows a KeyboardInterrupt raised inside it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from gym_servers.base import LOOPBACK, ServerSettings, bind
from gym_servers.draining import DrainingServer
from gym_servers.hosts.servers import Environments, Server
from gym_servers.protocol import OmnigymError
from gym_servers.registry import PATH_VARIABLE, load_environment
from gym_servers.resources import build_resources

T = TypeVar("T")
CALL_SECONDS = 60.0
DRAIN_SECONDS = 30


class _EnvironmentActor:
    """An actor's class: the server runs in a thread of it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.server: DrainingServer | None = None
        self.thread: threading.Thread | None = None

    def serve(self, wanted: Environments, driver_node: str, port: int) -> str:
        """Start to serve, on `port` where it is free; the server's address."""
        try:
            return self._serve(wanted, driver_node, port)
        finally:
            self.begun.set()

    def _serve(self, wanted: Environments, driver_node: str, port: int) -> str:
        if wanted.log is not None and wanted.log.parent.is_dir():
            with wanted.log.open("ab") as log:
                for number in (1, 2):
                    os.dup2(log.fileno(), number)
        here = ray.get_runtime_context().get_node_id() == driver_node
        host = LOOPBACK[0] if here else ray.util.get_node_ip_address()
        environments = [load_environment(name, dict(wanted.settings.get(name) or {})) for name in wanted.names]
        guard = build_resources(environments, ServerSettings(token=wanted.token))
        try:
            sock = bind(host, port)
        except OmnigymError:
            sock = bind(host, 0)
        self.server = DrainingServer(guard, seconds=DRAIN_SECONDS)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [sock]})
        self.thread.start()
        return f"http://{host}:{sock.getsockname()[1]}"

    def wait(self) -> None:
        """Until the server ends."""
        self.begun.wait()
        if self.thread is not None:
            self.thread.join()

    def stop(self) -> None:
        """Drain and end the server."""
        if self.server is not None:
            self.server.guard.draining = self.server.should_exit = True
        self.wait()


class RayServer(Server):
    """One actor that serves `wanted`."""

    def __init__(self, wanted: Environments) -> None:
        super().__init__("the environment server", wanted.log, wanted.restarts)
        self.wanted = wanted
        self._calls = ThreadPoolExecutor(1, "omnigym-ray")
        self.actor: Any = None
        self._serving: Future[str]
        self._ended: Future[None]
        self.start()

    def _call(self, call: Callable[[], T]) -> T:
        return self._calls.submit(call).result(CALL_SECONDS)

    def start(self) -> None:
        port = int(self.url.rpartition(":")[2] or 0)
        folders = os.pathsep.join(map(str, self.wanted.folders))
        variables = {"OMP_NUM_THREADS": "1", **({PATH_VARIABLE: folders} if folders else {})}

        def start() -> None:
            self._kill()
            options = {"num_cpus": 1, "max_restarts": 0, "max_concurrency": 3, "runtime_env": {"env_vars": variables}}
            self.actor = ray.remote(**options)(_EnvironmentActor).remote()
            node = ray.get_runtime_context().get_node_id()
            self._serving = self.actor.serve.remote(self.wanted, node, port).future()
            self._ended = self.actor.wait.remote().future()

        self._call(start)

    def address(self) -> str:
        return self._serving.result() if self._serving.done() else ""

    def death(self) -> str:
        for future in (self._serving, self._ended):
            error = future.exception() if future.done() else None
            if error is not None:
                cause = getattr(error, "cause", None)  # of an exception raised in the actor
                return f"died in its Ray actor: {' '.join(str(cause or error).split())[:600]}"
        return "ended in its Ray actor" if self._ended.done() else ""

    def log_tail(self) -> str:
        return f"{super().log_tail()} (an actor's log is with Ray where the run's folder is not on its node)"

    def _kill(self) -> None:
        if self.actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self.actor)
            self.actor = None

    def stop(self, seconds: float = 10.0) -> None:
        def stop() -> None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([self.actor.stop.remote()], timeout=seconds)
            self._kill()

        if self.actor is not None:
            self._call(stop)
            self._calls.shutdown()
        if self._folder is not None:
            self._folder.cleanup()


def environment_server(wanted: Environments) -> RayServer:
    """An actor that serves `wanted`, on a node that Ray chooses."""
    return RayServer(wanted)
