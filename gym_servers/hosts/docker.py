"""Environments in a container of the run's own: made, watched and removed through the Docker SDK for Python.

One container serves all environments of the run. It is hardened as those of compose/ are: user 1000, read-only root, no capability, no
new privileges, limits on memory and processes, a temporary /tmp that executes nothing, an init that reaps. Its network is one
of its own without a way out (its host can be reached, where a server listens on all addresses); the server is published at a
free port of 127.0.0.1, so the engine must be this machine's. The token goes in by standard input: it is in no variable, no
argument and no file.

The container lives as long as this process holds its input: where this process is killed the input ends, the server with it, and
the engine removes the container. What can stay is the empty network; it goes at the next start of the same run, or of
any run once it is an hour old. A label (omnigym.run) marks both.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import Mount
from requests.exceptions import RequestException

from gym_servers.hosts.servers import Environments, Server
from gym_servers.protocol import OmnigymError

IMAGE = "omnigym-environments:0.1.0"
"""What `docker compose build` makes."""
MEMORY_MB = 2048
LABEL = "omnigym.run"
INSIDE = 8000
"""The port in the container."""
PIDS = 512
TMP = {"/tmp": "rw,noexec,nosuid,nodev,size=256m,mode=1777"}
NO_WAY_OUT = {"com.docker.network.bridge.enable_ip_masquerade": "false"}
JOIN_SECONDS = 10.0
SWEEP_SECONDS = 60.0


class ContainerServer(Server):
    """One container that serves `wanted`."""

    def __init__(self, wanted: Environments) -> None:
        super().__init__("the environment container", wanted.log, wanted.restarts)
        self.wanted = wanted
        self.image, self.memory_mb = wanted.image or IMAGE, wanted.memory_mb or MEMORY_MB
        self.run = wanted.run or secrets.token_hex(6)
        self.container: Any = None
        self._input: Any = None
        self._followers: list[threading.Thread] = []
        self._death = ""
        with self._engine():
            self.client = docker.from_env()
            self._sweep()
        try:
            self.start()
        except OmnigymError:
            self.stop()
            raise

    @contextlib.contextmanager
    def _engine(self) -> Iterator[None]:
        """What the engine says no to is an OmnigymError."""
        try:
            yield
        except (DockerException, RequestException) as error:
            raise OmnigymError(f"host 'docker': {self._explained(error)}") from None

    def _explained(self, error: Exception) -> str:
        if isinstance(error, ImageNotFound):
            return (
                f"there is no image '{self.image}' on this machine: build it (`docker compose build`), or name another one "
                "(placement.image)"
            )
        if isinstance(error, APIError):
            return f"the engine refused: {error.explanation or error}"
        return f"no Docker engine can be reached: {error}"

    def _sweep(self) -> None:
        """Remove what an earlier process of this run left, and networks that nobody uses any more."""
        mine = {"label": f"{LABEL}={self.run}"}
        deadline = time.monotonic() + SWEEP_SECONDS
        while (left := self.client.containers.list(all=True, filters=mine)) and time.monotonic() < deadline:
            for container in left:
                with contextlib.suppress(APIError):  # its removal may be under way
                    container.remove(force=True)
            time.sleep(0.1)
        self._remove_network()
        self.client.networks.prune(filters={"label": LABEL, "until": "1h"})

    def _remove_network(self) -> None:
        for network in self.client.networks.list(filters={"label": f"{LABEL}={self.run}"}):
            with contextlib.suppress(NotFound):
                network.remove()

    @property
    def name_of_both(self) -> str:
        """Of the container and of its network."""
        return f"omnigym-{self.run}"

    def _network(self) -> str:
        """The network to join, which is made unless one is named."""
        if self.wanted.network is not None:
            return self.wanted.network
        if not self.client.networks.list(names=[self.name_of_both], filters={"label": f"{LABEL}={self.run}"}):
            self.client.networks.create(self.name_of_both, options=NO_WAY_OUT, labels={LABEL: self.run})
        return self.name_of_both

    def start(self) -> None:
        with self._engine():
            self._start()

    def _start(self) -> None:
        self._remove()
        port = int(self.url.rpartition(":")[2]) if self.url else None
        memory = f"{self.memory_mb}m"
        command = ["omnigym", "env", "serve", "--host", "0.0.0.0", "--port", str(INSIDE), "--attached"]
        self.container = self.client.containers.create(
            self.image,
            [*command, *self.wanted.arguments()],
            name=f"{self.name_of_both}-{self.began_again}",
            labels={LABEL: self.run},
            network=self._network(),
            ports={f"{INSIDE}/tcp": ("127.0.0.1", port)},
            mounts=[Mount(str(folder), str(folder), type="bind", read_only=True) for folder in self.wanted.folders],
            user="1000:1000",
            read_only=True,
            tmpfs=TMP,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=PIDS,
            mem_limit=memory,
            memswap_limit=memory,
            init=True,
            auto_remove=True,
            stdin_open=True,  # and once: it ends with the connection that holds it
        )
        self._death = ""
        self._input = self.client.api.attach_socket(self.container.id, params={"stdin": 1, "stream": 1})
        self._input._sock.sendall(f"{self.wanted.token}\n".encode())
        # All are there before it starts, since the engine removes at once one that dies at once.
        asked = threading.Event()
        output = docker.from_env(timeout=None).api.attach(self.container.id, stdout=True, stderr=True, stream=True)
        self._followers = [
            threading.Thread(target=self._wait, args=(self.container.id, asked), daemon=True),
            threading.Thread(target=self._keep, args=(output,), daemon=True),
        ]
        for thread in self._followers:
            thread.start()
        asked.wait(JOIN_SECONDS)
        self.container.start()

    def _wait(self, identity: str, asked: threading.Event) -> None:
        """Until the container ends; how it did."""
        try:
            client = docker.from_env()
            asked.set()
            code = client.api.wait(identity, timeout=None, condition="removed")["StatusCode"]
            how = f"ended with status {code}"
            if code == 137:
                how += f" (killed; perhaps at its memory limit, placement.memory_mb {self.memory_mb})"
        except (DockerException, RequestException, KeyError) as error:
            how = f"is gone, as far as the engine can be asked: {error}"
        asked.set()
        if self.container is not None and self.container.id == identity:
            self._death = how

    def _keep(self, output: Iterator[bytes]) -> None:
        """What the server writes, until it ends."""
        with contextlib.suppress(DockerException, RequestException, OSError), self.log.open("ab", buffering=0) as log:
            for chunk in output:
                log.write(chunk)

    def address(self) -> str:
        if self.container is None:
            return ""
        try:
            with self._engine():
                self.container.reload()
        except OmnigymError:
            return ""  # it is being removed; where the engine is gone, its wait has ended too
        published = (self.container.ports or {}).get(f"{INSIDE}/tcp")
        return f"http://127.0.0.1:{published[0]['HostPort']}" if published else ""

    def death(self) -> str:
        return self._death

    def log_tail(self) -> str:
        for thread in self._followers if self._death else ():
            thread.join(JOIN_SECONDS)  # the last lines may be under way
        return super().log_tail()

    def _remove(self) -> None:
        container, self.container = self.container, None
        if container is not None:
            with contextlib.suppress(NotFound, APIError):  # the engine may be removing it by itself
                container.remove(force=True)
            if self._input is not None:
                self._input.close()
            for thread in self._followers:
                thread.join(JOIN_SECONDS)

    def stop(self, seconds: float = 10.0) -> None:
        with contextlib.suppress(NotFound):
            if self.container is not None and not self._death:
                self.container.stop(timeout=int(seconds))
        self._remove()
        self._remove_network()
        self.client.close()
        if self._folder is not None:
            self._folder.cleanup()


def environment_server(wanted: Environments) -> ContainerServer:
    """A container that serves `wanted`."""
    return ContainerServer(wanted)
