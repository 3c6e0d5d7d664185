"""What `omnigym rollout` and `omnigym eval` share: where a model and environments are, which rollouts are wanted, a watch on servers."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from gym_servers.checkpoints import resolve_model
from gym_servers.commands.serve import settings_by_environment
from gym_servers.hosts.local import LocalHost
from gym_servers.protocol import OmnigymError, Rollout
from gym_servers.registry import load_environment
from gym_servers.rollouts import Collector, RolloutRequest, rollout_seed
from gym_servers.rows import named_tasks, parse_line, read_lines
from gym_servers.variables import variable

Row = dict[str, Any]


def is_url(text: str) -> bool:
    """Whether `text` is an address rather than a name."""
    return text.startswith(("http://", "https://"))


def tasks_of_file(path: Path, check: Callable[[Row], object] | None = None) -> Iterator[tuple[str, Row]]:
    """(task id, row) of a JSONL file, streamed, each row checked. Raises RowError that names the line."""
    return named_tasks(((where, parse_line(line, where)) for where, line in read_lines(path)), check)


def wanted(environment: str, tasks: Iterable[tuple[str, Row]], n: int, seed: int) -> Iterator[RolloutRequest]:
    """n attempts of every task, one group a task."""
    for task_id, row in tasks:
        for attempt in range(n):
            group = f"{environment}/{task_id}"
            drawn = rollout_seed(seed, environment, task_id, attempt)
            yield RolloutRequest(row, task_id, environment, group, attempt, drawn)


def engine_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`--engine key=value` pairs, values read as YAML. Raises OmnigymError."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OmnigymError(f"--engine '{pair}': must be key=value, a setting of gym_servers.models.vllm")
        settings[key] = yaml.safe_load(value)
    return settings


class Stage:
    """The servers of one command: those given by URL are used, the others are started and ended with it.

    model: URL or checkpoint. A URL is taken for a server with a ledger where OMNIGYM_SECRET is set (the server's own secret),
    else for any OpenAI-compatible one: no tokens are recorded then. OMNIGYM_TOKEN is the bearer token of servers given by URL.
    settings: `NAME.key=value` of environments that are started here.
    """

    def __init__(
        self,
        environments: Sequence[str],
        model: str,
        concurrency: int,
        engine: Sequence[str] = (),
        seed: int = 0,
        settings: Sequence[str] = (),
    ) -> None:
        self.host = LocalHost()
        self.token = variable("OMNIGYM_TOKEN") or secrets.token_urlsafe(24)
        self.urls: dict[str, str] = {}
        self.local: list[str] = []
        for given in environments:
            name, equals, url = given.partition("=")
            if equals and not is_url(url):
                raise OmnigymError(f"--env '{given}': after '=' comes the URL of the environment's server")
            if name in self.urls or name in self.local:
                raise OmnigymError(f"--env '{name}' is given twice")
            if equals:
                self.urls[name] = url.rstrip("/")
            else:
                self.local.append(name)
        self.settings = settings_by_environment(settings, self.local)
        for name in self.local:  # what is unknown is an error before anything starts
            load_environment(name, self.settings.get(name))
        self.model = model if is_url(model) else str(resolve_model(model))
        self.engine: dict[str, Any] = {"max_num_seqs": concurrency, "seed": seed, **engine_settings(engine)}
        self.concurrency = concurrency

    @property
    def names(self) -> list[str]:
        """Names of the environments."""
        return [*self.urls, *self.local]

    def row_check(self, name: str) -> Callable[[Row], object] | None:
        """What an environment that is started here says of its rows, before anything is sampled; None for one given by URL."""
        return load_environment(name, self.settings.get(name)).check_row if name in self.local else None

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.host.__exit__(*exc)

    def collector(self, sampling: dict[str, Any], retries: int, no_progress_seconds: float) -> Collector:
        """A collector over the servers, once they are ready. Raises ServerDied."""
        environments = self.host.start_environments(self.local, self.token, self.settings) if self.local else None
        secret = variable("OMNIGYM_SECRET")
        model = None
        if not is_url(self.model):
            secret = secrets.token_urlsafe(24)
            settings = {**self.engine, "model": self.model, "token": self.token, "secret": secret}
            model = self.host.start_model(settings, int(self.engine.get("threads", 2)))
        urls = dict(self.urls)
        if environments is not None:
            base = environments.wait_ready()
            urls |= {name: f"{base}/{name}" for name in self.local}
        address = self.model.rstrip("/").removesuffix("/v1") if model is None else model.wait_ready(600)
        return Collector(
            environments=urls,
            model_url=f"{address}/v1",
            run=secrets.token_hex(8),
            secret=secret,
            sampling=sampling,
            concurrency=self.concurrency,
            retries=retries,
            no_progress_seconds=no_progress_seconds,
            token=self.token,
        )

    async def rollouts(self, collector: Collector, requests: Iterable[RolloutRequest]) -> AsyncIterator[Rollout]:
        """Rollouts as they end. Raises ServerDied as soon as a server that was started here is gone."""
        source = collector.collect(requests)
        watching = asyncio.create_task(self.host.watch())
        following: asyncio.Task[Rollout | None] | None = None
        try:
            while True:
                following = asyncio.create_task(_next(source))
                await asyncio.wait({following, watching}, return_when=asyncio.FIRST_COMPLETED)
                self.host.check()  # failures that a dying server causes may come before the watch looks
                rollout = await following
                if rollout is None:
                    return
                yield rollout
        finally:
            for task in (watching, following):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await source.aclose()  # type: ignore[attr-defined]  # an async generator


async def _next(source: AsyncIterator[Rollout]) -> Rollout | None:
    return await anext(source, None)


class FailureBudget:
    """Stops a command whose rollouts mostly fail: past `share` of those that ended, once `least` have. setting: what sets the share."""

    def __init__(self, share: float, least: int = 20, setting: str = "--max-failures") -> None:
        if not 0.0 <= share <= 1.0:
            raise OmnigymError(f"{setting} {share}: must be a share from 0 to 1")
        self.share, self.least, self.setting = share, least, setting
        self.ended = self.failed = 0
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.example: dict[tuple[str, str], str] = {}

    def add(self, rollout: Rollout) -> None:
        """Count one. Raises OmnigymError past the limit."""
        self.ended += 1
        if rollout.failure is None:
            return
        self.failed += 1
        key = (rollout.environment, rollout.failure.kind)
        self.kinds[key] += 1
        self.example.setdefault(key, rollout.failure.message)
        if self.ended >= self.least and self.failed > self.share * self.ended:
            raise OmnigymError(
                f"{self.failed} of {self.ended} rollouts failed, more than {self.share:.0%}: {self.describe()}; "
                f"what is done is kept; {self.setting} sets the limit"
            )

    def describe(self) -> str:
        """Failures by environment and kind, with one message of the most frequent."""
        if not self.kinds:
            return "none"
        listed = ", ".join(f"{n} x {kind} in '{name}'" for (name, kind), n in self.kinds.most_common())
        return f"{listed} (such as: {self.example[self.kinds.most_common(1)[0][0]]})"
