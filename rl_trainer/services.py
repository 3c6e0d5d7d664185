"""What a run starts, and ends: a local Ray, the environment servers, the vLLM model server.

Servers are processes of their own that die with this one (PR_SET_PDEATHSIG) and are ended with their whole process group. While
rollouts are collected a watcher looks at every process twice a second: one that died is named with the end of its log, and
the run stops. All traffic is HTTP on loopback with one bearer token of this run.

Under Ray only the policy workers are actors; servers belong to the driver, on the driver's machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.rollouts import Collector, RolloutRequest
from rl_trainer.config import RunConfig
from rl_trainer.loop import RolloutPlan, RunStopped

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
STOP_SECONDS = 15.0


class ServerDied(OmnigymError):
    """A process that the run needs is gone; names it and shows the end of its log."""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ServerProcess:
    """A server of the run: the first line of its standard output is its address, the rest is in its log."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out = log.with_suffix(".out")
        with log.open("wb") as errors, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,  # a Ctrl-C is this process's to handle
                preexec_fn=_die_with_parent,
            )
        self.url = ""

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "(its log is empty)"

    def check(self) -> None:
        """Raises ServerDied."""
        code = self.process.poll()
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise ServerDied(f"{self.name} {how}; {self.log} ends: {self.tail()}")

    def wait_ready(self, seconds: float) -> str:
        """Its address, once /readyz answers. Raises ServerDied where it died or took too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            lines = self._out.read_text(errors="replace").splitlines()
            address = next((line for line in lines if line.startswith("http://")), "")
            if address:
                with contextlib.suppress(OSError), _OPENER.open(f"{address}/readyz", timeout=5):
                    self.url = address
                    return address
            time.sleep(0.1)
        raise ServerDied(f"{self.name} was not ready within {seconds:g} s; {self.log} ends: {self.tail()}")

    def stop(self) -> None:
        """End it and everything in its process group."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class HttpGeneration:
    """Rollouts over HTTP: the model server and the environments of this run."""

    def __init__(
        self,
        config: RunConfig,
        run: str,
        environments: dict[str, str],
        model_url: str,
        token: str | None,
        secret: str,
        processes: Sequence[ServerProcess] = (),
    ) -> None:
        self.config, self.run, self.model_url, self.token = config, run, model_url, token
        self.environments, self.secret, self.processes = environments, secret, processes

    def collect(self, plans: Sequence[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
        """See rl_trainer/loop.py."""
        asyncio.run(self._collect(plans, on_done))

    async def _collect(self, plans: Sequence[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
        sampling = self.config.sampling
        collector = Collector(
            environments=self.environments,
            model_url=self.model_url,
            run=f"{self.run}/{secrets.token_hex(4)}",
            secret=self.secret,
            sampling={
                "temperature": sampling.temperature,
                "top_p": 1.0,
                "max_output_tokens": sampling.max_tokens,
            },
            concurrency=self.config.concurrency,
            retries=self.config.failure_retries,
            no_progress_seconds=self.config.no_progress_seconds,
            token=self.token,
        )
        requests = (
            RolloutRequest(
                plan.task.row, plan.task.task_id, plan.task.environment, plan.group, plan.attempt, seed=plan.seed
            )
            for plan in plans
        )

        async def gather() -> None:
            async for rollout in collector.collect(requests):
                on_done(rollout)

        collecting, watching = asyncio.create_task(gather()), asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait({collecting, watching}, return_when=asyncio.FIRST_COMPLETED)
            # Failures that a dying server causes may end the collection before the watcher looks: name the server first.
            for process in self.processes:
                process.check()
            for task in done:
                task.result()
        finally:
            for task in (collecting, watching):
                task.cancel()
            await asyncio.gather(collecting, watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            for process in self.processes:
                process.check()
            await asyncio.sleep(0.5)

    def update_weights(self, path: Path, digest: str, version: int) -> str:
        """See rl_trainer/loop.py; the digest is the one that the engine computed from what it received."""
        self._admin("update_weights", {"path": str(path), "digest": digest, "version": version})
        state = self._admin("state", None)
        if state["weight_version"] != version:
            raise RunStopped(f"the engine says its weights are version {state['weight_version']}, sent was {version}")
        return str(state["digest"])

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See rl_trainer/loop.py."""
        scores: list[list[float]] = self._admin("score", {"token_ids": [list(ids) for ids in token_ids]})["logprobs"]
        return scores

    def _admin(self, call: str, body: dict[str, Any] | None) -> dict[str, Any]:
        url = f"{self.model_url}/admin/{call}"
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)
        try:
            with _OPENER.open(request, timeout=self.config.no_progress_seconds) as reply:
                answer: dict[str, Any] = json.loads(reply.read())
                return answer
        except urllib.error.HTTPError as error:
            detail = error.read(2000).decode(errors="replace")
            raise RunStopped(f"the model server refused /admin/{call}: {error.code} {detail}") from None
        except (OSError, ValueError) as error:
            for process in self.processes:
                process.check()
            raise RunStopped(f"the model server did not answer /admin/{call}: {error}") from None


class Services:
    """The processes of a run, as a context: all are ended when it is left, in whichever way."""

    def __init__(self, config: RunConfig, run_folder: Path) -> None:
        self.config, self.folder = config, run_folder
        self.token, self.secret = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.processes: list[ServerProcess] = []
        self._ray = False

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self.processes):
            process.stop()
        if self._ray:
            import ray

            ray.shutdown()

    def start_servers(self, model: Path) -> None:
        """Start the environment servers and the model server side by side; `generation` waits for them."""
        config = self.config
        python = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
        self._start(
            "the environment server",
            [*python, "env", "serve", *config.environments, "--port", "0"],
            {"OMNIGYM_TOKEN": self.token, "OMP_NUM_THREADS": "1"},
        )
        settings = {
            "model": str(model),
            "dtype": config.engine.dtype,
            "max_model_len": config.engine.max_model_len,
            "max_num_seqs": config.concurrency,
            "threads": config.engine.threads,
            "kv_gib": config.engine.kv_gib,
            "seed": config.seed,
            "token": self.token,
            "secret": self.secret,
        }
        self._start(
            "the model server",
            [sys.executable, "-m", "gym_servers.models.vllm", "--settings", json.dumps(settings)],
            {"OMP_NUM_THREADS": str(config.engine.threads)},
        )

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        log = self.folder / "logs" / f"{name.removeprefix('the ').replace(' ', '_')}.log"
        self.processes.append(ServerProcess(name, command, log, environment))

    def generation(self) -> HttpGeneration:
        """Rollouts from the servers, once they are ready."""
        seconds = self.config.engine.start_seconds
        urls = [process.wait_ready(seconds) for process in self.processes]
        return HttpGeneration(
            self.config,
            self.folder.name,
            {name: f"{urls[0]}/{name}" for name in self.config.environments},
            urls[1],
            self.token,
            self.secret,
            self.processes,
        )

    def start_ray(self) -> None:
        """Join the cluster of RAY_ADDRESS (set under `ray job submit`) or ray.address, else start a local Ray."""
        # A token file that lies about must not switch authentication on in some of a run's processes.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS") or self.config.ray.address
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.setdefault(
                "RAY_worker_niceness", "0"
            )  # Ray's 15 lets any other process of the user's stall a step
        import ray

        if address:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        else:
            ray.init(
                num_cpus=max(self.config.ray.num_cpus, self.config.policy.workers),
                include_dashboard=False,
                object_store_memory=self.config.ray.object_store_mb * 1_000_000,
                log_to_driver=False,
                configure_logging=False,
            )
        self._ray = True
