"""The one policy for servers that die, on servers that are scripted: what is started again, how often, and who waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from gym_servers.client import Client
from gym_servers.hosts import servers as hosts
from gym_servers.hosts.servers import Environments, Server, ServerDied, Servers, environment_server
from gym_servers.protocol import FailureError, OmnigymError


class Scripted(Server):
    """A server whose deaths a test decides. starts: what each start leads to: an address, or how it dies."""

    def __init__(self, restarts: int = 0, starts: tuple[str, ...] = ()) -> None:
        super().__init__("the toy", None, restarts)
        self.starts = list(starts)
        self.how, self.where, self.stopped = "", "http://toy:1", 0
        self.may_be_ready = True

    def start(self) -> None:
        result = self.starts.pop(0)
        self.how, self.where = ("", result) if result.startswith("http") else (result, "")

    def address(self) -> str:
        return self.where

    def death(self) -> str:
        return self.how

    def ready(self) -> bool:
        self.check()
        if self.may_be_ready:
            self.url = self.where
            self.addresses.append(self.where)
        return self.may_be_ready

    def stop(self, seconds: float = 10.0) -> None:
        self.stopped += 1


@contextlib.contextmanager
def watched(*servers: Scripted) -> Iterator[Servers]:
    with Servers() as all_of_them:
        all_of_them.servers += servers
        for server in servers:
            server.ready()
        yield all_of_them


async def watch_until(servers: Servers, seconds: float, done: Any) -> None:
    watching = asyncio.create_task(servers.watch(0.001))
    async with asyncio.timeout(seconds):
        while not done():
            if watching.done():
                watching.result()
            await asyncio.sleep(0.001)
    watching.cancel()


def test_deaths_are_counted_over_the_run_and_the_last_is_named() -> None:
    toy, notes = Scripted(2, ("http://toy:1", "http://toy:2")), list[str]()
    with watched(toy) as servers:
        servers.on_restart = notes.append
        for left in (1, 0):
            toy.log.write_text("first\nlast words\n")
            toy.how = "broke"
            asyncio.run(watch_until(servers, 60, lambda: not toy.how))
            assert toy.restarts == left
        toy.how = "broke"
        with pytest.raises(ServerDied, match=r"the toy broke \(after it was started again 2 times\); .*last words"):
            asyncio.run(watch_until(servers, 60, lambda: False))
    assert [note.rpartition("; ")[2] for note in notes] == [f"it is started again, restarts left: {n}" for n in (1, 0)]
    assert all("the toy broke" in note and "last words" in note for note in notes)
    assert toy.stopped == 1


def test_dying_at_the_start_uses_up_restarts_and_being_late_is_a_death() -> None:
    toy = Scripted(3, ("dead on arrival", "dead again", "http://toy:1"))
    with watched(toy) as servers:
        toy.how = "broke"
        asyncio.run(watch_until(servers, 60, lambda: toy.restarts == 0 and not toy.how))
        toy = servers.servers[0] = Scripted(1, ("http://toy:1",))
        servers.ready_seconds, toy.how, toy.may_be_ready = 0.01, "broke", False
        with pytest.raises(ServerDied, match="was not ready within 0.01 s"):
            asyncio.run(watch_until(servers, 60, lambda: False))


def test_a_check_names_only_what_is_not_started_again() -> None:
    again, once = Scripted(1), Scripted(0)
    with watched(again, once) as servers:
        again.how = "broke"
        servers.check()
        once.how = "broke too"
        with pytest.raises(ServerDied, match="broke too"):
            servers.check()


def test_one_that_cannot_be_stopped_keeps_no_other_alive() -> None:
    class Stubborn(Scripted):
        def stop(self, seconds: float = 10.0) -> None:
            raise OmnigymError("no")

    first, second, third = Scripted(), Stubborn(), Scripted()
    with pytest.raises(OmnigymError, match="no"), watched(first, second, third):
        pass
    assert (first.stopped, third.stopped) == (1, 1)


def test_a_request_waits_until_its_server_is_there_again_and_follows_it() -> None:
    """The connection fails as long as the server is away; a client with no patience of its own gets its answer all the same."""
    toy = Scripted(1, ("http://toy:2",))
    asked: list[str] = []

    async def transport(url: str, data: bytes, headers: dict[str, str]) -> Any:
        asked.append(url)
        if url.startswith("http://toy:2/"):
            return 200, b"{}", {}, 0.0
        toy.how = "broke"
        raise ConnectionRefusedError("nobody")

    async def run(servers: Servers, settled: bool) -> None:
        toy.may_be_ready = False
        watching = asyncio.create_task(servers.watch(0.001))
        asyncio.get_running_loop().call_later(0.3, setattr, toy, "may_be_ready", True)
        hook = servers.settled if settled else None
        try:
            async with Client(transport=transport, retries=1, wait=0.001, settled=hook) as client:
                await client.post("http://toy:1/mcqa/verify", {}, seconds=60)
        finally:
            watching.cancel()

    with watched(toy) as servers:
        asyncio.run(run(servers, settled=True))
    assert asked == ["http://toy:1/mcqa/verify", "http://toy:2/mcqa/verify"]
    toy = Scripted(1, ("http://toy:2",))
    with watched(toy) as servers, pytest.raises(FailureError, match="nobody"):
        asyncio.run(run(servers, settled=False))


def test_the_wait_ends_with_the_request_s_own_deadline() -> None:
    async def transport(url: str, data: bytes, headers: dict[str, str]) -> Any:
        raise ConnectionRefusedError("nobody")

    async def never(url: str) -> str:
        await asyncio.Event().wait()
        return url

    async def run() -> None:
        async with Client(transport=transport, wait=0.001, settled=never) as client:
            await client.post("http://toy:1/", {}, seconds=0.2)

    with pytest.raises(FailureError, match="no answer within 0.2 s"):
        asyncio.run(run())


def test_without_a_watch_nobody_waits() -> None:
    with watched(Scripted()) as servers:
        assert asyncio.run(asyncio.wait_for(servers.settled("http://toy:1/x"), 60)) == "http://toy:1/x"


def test_a_host_whose_package_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name.rpartition(".")[2])

    monkeypatch.setattr(hosts.importlib, "import_module", absent)
    for host, extra in (("docker", "docker"), ("ray", "train")):
        with pytest.raises(
            OmnigymError, match=rf"host '{host}' needs the package {host}: pip install 'omnigym\[{extra}\]'"
        ):
            environment_server(host, Environments(["mcqa"], "t"))  # type: ignore[arg-type]
