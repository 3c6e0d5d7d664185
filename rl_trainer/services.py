"""What a run starts, and ends: a local Ray, the environment server on the host that `placement` names, the vLLM model server.

The model server is a process that dies with this one (PR_SET_PDEATHSIG), on the driver's machine; what each host of environments
does is in gym_servers/hosts/. While rollouts are collected a watcher looks at every server twice a second. An environment server
that died is started again, placement.restarts times in a run; the model server never is, since its weights would be gone. The
next death is named with the end of its log, and the run stops. All traffic is HTTP with one bearer token of this run, but for
environments at a URL, which have their own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gym_servers.agents.tool_loop import LoopLimits
from gym_servers.hosts.local import LocalHost, LocalServer
from gym_servers.hosts.servers import DIRECT, Environments, Server, Servers, environment_server
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.rollouts import Collector, RolloutRequest
from gym_servers.variables import variable
from rl_trainer.config import PlacementConfig, RunConfig
from rl_trainer.generation import RolloutPlan, RunStopped
from rl_trainer.interrupt import INTERRUPTS

DAY = 86_400.0
DEATH_SECONDS = 2.0


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
        host: Servers,
    ) -> None:
        self.config, self.run, self.model_url, self.token = config, run, model_url, token
        self.environments, self.secret, self.host = environments, secret, host

    def collect(self, plans: Iterable[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
        """See rl_trainer/generation.py."""
        asyncio.run(self._collect(plans, on_done))

    async def _collect(self, plans: Iterable[RolloutPlan], on_done: Callable[[Rollout], None]) -> None:
        sampling = self.config.sampling
        collector = Collector(
            environments={name: self.host.current(url) for name, url in self.environments.items()},
            model_url=self.model_url,
            settled=self.host.settled,
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
            # Only no_progress_seconds ends a wait: a slow rollout is never masked by a clock of its own.
            limits=LoopLimits(tool_seconds=DAY, verify_seconds=DAY),
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

        collecting, watching = asyncio.create_task(gather()), asyncio.create_task(self.host.watch())
        try:
            done, _ = await asyncio.wait({collecting, watching}, return_when=asyncio.FIRST_COMPLETED)
            # Failures that a dying server causes may end the collection before the watcher looks: name the server first.
            self.host.check()
            for task in done:
                task.result()
        finally:
            for task in (collecting, watching):
                task.cancel()
            await asyncio.gather(collecting, watching, return_exceptions=True)

    def update_weights(self, path: Path, digest: str, version: int, rehearsal: bool = False, back: bool = False) -> str:
        """See rl_trainer/generation.py; the digest is the one that the engine computed from what it received."""
        body = {"path": str(path), "digest": digest, "version": version, "rehearsal": rehearsal, "back": back}
        self._admin("update_weights", body)
        state = self._admin("state", None)
        if state["weight_version"] != version:
            raise RunStopped(f"the engine says its weights are version {state['weight_version']}, sent was {version}")
        return str(state["digest"])

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See rl_trainer/generation.py."""
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
            with DIRECT.open(request, timeout=self.config.no_progress_seconds) as reply:
                answer: dict[str, Any] = json.loads(reply.read())
                return answer
        except urllib.error.HTTPError as error:
            detail = error.read(2000).decode(errors="replace")
            raise RunStopped(f"the model server refused /admin/{call}: {error.code} {detail}") from None
        except (OSError, ValueError) as error:
            deadline = time.monotonic() + DEATH_SECONDS
            while time.monotonic() < deadline:  # a closed connection comes a moment before the process is seen dead
                self.host.check()
                time.sleep(0.05)
            raise RunStopped(f"the model server did not answer /admin/{call}: {error}") from None


def environments_token(placement: PlacementConfig) -> str:
    """The token of the server at `placement.url`. Raises OmnigymError where none is set."""
    if token := variable("OMNIGYM_ENVIRONMENTS_TOKEN"):
        return token
    raise OmnigymError(
        f"placement.url {placement.url}: set OMNIGYM_ENVIRONMENTS_TOKEN, or OMNIGYM_ENVIRONMENTS_TOKEN_FILE, to the server's token"
    )


class Services:
    """The servers of a run, as a context: all are ended when it is left, in whichever way."""

    def __init__(self, config: RunConfig, run_folder: Path) -> None:
        self.config, self.folder = config, run_folder
        self.token, self.secret = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.host = LocalHost(run_folder / "logs")
        self.model: LocalServer | None = None
        self.environments: Server | None = None
        self._ray = False

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.host.__exit__(kind, error, trace)
        if self._ray:
            import ray

            with INTERRUPTS.held():
                ray.shutdown()

    def start_model(self, model: Path) -> None:
        """Start the model server; `generation` waits for it."""
        config = self.config
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
        self.model = self.host.start_model(settings, config.engine.threads)

    def start_environments(self) -> None:
        """Start the environment server where `placement` says (under Ray: once it is up); `generation` waits for it.

        Raises OmnigymError.
        """
        config, placement = self.config, self.config.placement
        if not config.local_environments:
            return
        token = environments_token(placement) if placement.environments == "url" else self.token
        wanted = Environments(
            config.local_environments,
            token,
            {name: values for name, values in config.settings.items() if name in config.environments},
            config.environment_paths,
            self.host.log_of("the environment server"),
            placement.restarts,
            f"{self.folder.name}-{hashlib.sha256(bytes(self.folder.resolve())).hexdigest()[:8]}",
            placement.image,
            placement.network,
            placement.memory_mb,
            placement.url,
        )
        self.environments = environment_server(placement.environments, wanted)
        self.host.servers.append(self.environments)

    def generation(self, on_restart: Callable[[str], None] = lambda text: None) -> HttpGeneration:
        """Rollouts from the servers, once they are ready. on_restart: told why a server is started again."""
        assert self.model is not None
        seconds = self.config.engine.start_seconds
        self.host.on_restart, self.host.ready_seconds = on_restart, seconds
        urls = {name: url.rstrip("/") for name, url in self.config.environment_urls.items()}
        if self.environments is not None:
            self.environments.wait_ready(seconds)
            urls |= {name: self.environments.environment_url(name) for name in self.config.local_environments}
        model = self.model.wait_ready(seconds)
        return HttpGeneration(self.config, self.folder.name, urls, model, self.token, self.secret, self.host)

    def start_ray(self) -> None:
        """Join the cluster of RAY_ADDRESS (set under `ray job submit`) or ray.address, else start a local Ray."""
        # A token file that lies about must not switch authentication on in some of a run's processes.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS") or self.config.ray.address
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            # Ray's 15 lets any other process of the user's stall a step.
            os.environ.setdefault("RAY_worker_niceness", "0")
        with INTERRUPTS.held():
            import ray

            if address:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            else:
                actors = self.config.policy.workers + (self.config.placement.environments == "ray")
                ray.init(
                    num_cpus=max(self.config.ray.num_cpus, actors),
                    include_dashboard=False,
                    object_store_memory=self.config.ray.object_store_mb * 1_000_000,
                    log_to_driver=False,
                    configure_logging=False,
                )
            self._ray = True
            INTERRUPTS.claim()
