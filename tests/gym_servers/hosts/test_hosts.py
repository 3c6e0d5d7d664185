"""What every host of environments must hold, in one set: ready, guarded, right verdicts, sessions, settings, folders, deaths, ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import need
from kit_toys import Model, message, serving

from gym_servers.base import ServerSettings
from gym_servers.client import Client
from gym_servers.commands.env_new import write
from gym_servers.hosts.inprocess import InProcessHost
from gym_servers.hosts.local import LocalServer
from gym_servers.hosts.local import environment_server as local_server
from gym_servers.hosts.servers import Environments, Server, ServerDied, Servers, environment_server
from gym_servers.protocol import FailureError, OmnigymError, Rollout, RowError
from gym_servers.registry import PATH_VARIABLE, add_folder, load_environment
from gym_servers.resources import build_resources
from rl_trainer.config import RunConfig
from rl_trainer.loop import plan_rollouts
from rl_trainer.sampler import LoadedTask, PlannedTask
from rl_trainer.services import HttpGeneration

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-of-the-test"
SECONDS = 600.0
RUN = f"hosts-test-{os.getpid()}"
SLOW = (pytest.param("docker", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow))


@pytest.fixture
def client(environments_image: str) -> Any:
    """The Docker client, with the image there."""
    need(
        "docker", find_spec("docker") is not None, "the package docker is not installed: pip install 'omnigym[docker]'"
    )
    import docker

    return docker.from_env()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A small Ray of the test's own."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(PATH_VARIABLE, "")
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    if request.param == "docker":
        request.getfixturevalue("client")
    return str(request.param)


def wanted(names: list[str], **values: Any) -> Environments:
    return Environments(names, TOKEN, run=RUN, image=os.environ.get("OMNIGYM_IMAGE", ""), **values)


@contextlib.contextmanager
def hosted(kind: str, given: Environments) -> Iterator[tuple[Servers, Server, LocalServer | None]]:
    """(servers, the one of the environments, for `url` the one that stands behind the URL)."""
    behind = None
    with contextlib.ExitStack() as stack:
        if kind == "url":
            behind = local_server(Environments(given.names, TOKEN, given.settings, given.folders))
            stack.callback(behind.stop)
            given = Environments(given.names, TOKEN, restarts=given.restarts, url=behind.wait_ready(SECONDS))
        servers = stack.enter_context(Servers())
        servers.ready_seconds = SECONDS
        server = environment_server(kind, given)  # type: ignore[arg-type]
        servers.servers.append(server)
        server.wait_ready(SECONDS)
        yield servers, server, behind


@contextlib.asynccontextmanager
async def reachable(kind: str, given: Environments) -> AsyncIterator[tuple[Callable[[str], str], InProcessHost | None]]:
    """(URL of an environment by name, the transport where there is no socket)."""
    if kind != "inprocess":
        with hosted(kind, given) as (_, server, _):
            yield server.environment_url, None
        return
    for folder in given.folders:
        add_folder(folder)
    environments = [load_environment(name, dict(given.settings.get(name) or {})) for name in given.names]
    async with InProcessHost() as host:
        base = await host.start("environments", build_resources(environments, ServerSettings(token=TOKEN)))
        yield lambda name: f"{base}/{name}", host


def cases_of(file: Path, most: int = 10) -> list[dict[str, Any]]:
    """Some of the cases with one rollout each, from all over the file."""
    cases = [json.loads(line) for line in file.read_text().splitlines()]
    single = [case for case in cases if {"reward", "error"} & set(case["expected"])]
    return single[:: max(1, len(single) // most)]


async def check_cases(client: Client, url: str, file: Path) -> None:
    cases = cases_of(file)
    assert len(cases) >= 5
    for case in cases:
        expected = case["expected"]
        if "error" in expected:
            with pytest.raises(RowError, match=expected["error"]):
                await client.post(f"{url}/verify", case["request"], seconds=SECONDS)
            continue
        reply = await client.post(f"{url}/verify", case["request"], seconds=SECONDS)
        assert reply.json()["reward"] == pytest.approx(expected["reward"]), case["id"]


async def play(client: Client, url: str, name: str, kept: bool) -> float:
    """The gold calls of a task in a session, `kept`, or with the last one left out; the reward of the state."""
    environment = load_environment(name)
    row = next(iter(environment.generate(1, 3, "train")))
    gold = environment.gold(environment.check_row(row))
    assert gold is not None
    session = await client.post(f"{url}/seed_session", row, seconds=SECONDS)
    calls = [item for item in gold if item["type"] == "function_call"]
    done = calls if kept else calls[:-1]
    for call in done:
        body = json.loads(call["arguments"])
        await client.post(f"{url}/{call['name']}", body, seconds=SECONDS, cookies=session.cookies)
    output = [item for item in gold if item in done or item["type"] == "message"]
    body = {**row, "response": {"output": output}}
    verdict = await client.post(f"{url}/verify", body, seconds=SECONDS, cookies=session.cookies)
    with pytest.raises(FailureError, match="session has ended"):  # the verdict ended it
        await client.post(f"{url}/verify", body, seconds=SECONDS, cookies=session.cookies)
    return float(verdict.json()["reward"])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["inprocess", "local", "url", *SLOW], indirect=True)
def test_a_host_serves(kind: str, tmp_path: Path) -> None:
    """Token, verdicts of cases.jsonl, a session, settings, an environment from a folder of its own."""
    outside = f"host_{kind}"
    write(outside, "single_turn", tmp_path / outside)
    folder = tmp_path / outside
    given = wanted(
        ["competition_math", "structured_outputs", "mcqa", "workplace_assistant", outside],
        settings={"competition_math": {"require_box": True}},
        folders=[folder],
    )

    async def check() -> None:
        async with reachable(kind, given) as (url, transport):
            async with Client(token="another", transport=transport) as stranger:
                where = url("mcqa").replace(f"omnigym:{TOKEN}@", "")
                with pytest.raises(FailureError, match="401"):
                    await stranger.post(f"{where}/verify", {}, seconds=SECONDS)
            async with Client(token=TOKEN, transport=transport) as client:
                for name in ("structured_outputs", "mcqa", "workplace_assistant"):
                    await check_cases(client, url(name), ROOT / "environments" / name / "cases.jsonl")
                await check_cases(client, url(outside), folder / outside / "cases.jsonl")
                assert await play(client, url("workplace_assistant"), "workplace_assistant", kept=True) == 1.0
                assert await play(client, url("workplace_assistant"), "workplace_assistant", kept=False) == 0.0
                for text, reward in (("The answer is 4", 0.0), ("\\boxed{4}", 1.0)):
                    body = {"expected_answer": "4", "response": {"output": message(text)}}
                    reply = await client.post(f"{url('competition_math')}/verify", body, seconds=SECONDS)
                    assert reply.json()["reward"] == reward

    asyncio.run(check())
    assert not traces(kind)


def traces(kind: str) -> list[str]:
    """What is left of this test's servers."""
    if kind == "docker":
        import docker

        client, mine = docker.from_env(), {"label": f"omnigym.run={RUN}"}
        left = client.containers.list(all=True, filters=mine) + client.networks.list(filters=mine)
        return [found.name for found in left]
    words = "ray::_EnvironmentActor" if kind == "ray" else "env serve"
    deadline = time.monotonic() + 60  # an actor's process ends a moment after it is told to
    while True:
        family = psutil.Process().children(recursive=True)
        left = [f"{child.pid} {words}" for child in family if words in command_line(child)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill(kind: str, server: Any, behind: LocalServer | None, again: bool) -> None:
    """A sudden end of the server; `again`: who runs the one behind a URL starts it again."""
    if kind == "local":
        os.kill(server.process.pid, signal.SIGKILL)
    elif kind == "ray":
        import ray

        ray.kill(server.actor)
    elif kind == "docker":
        server.container.exec_run(["sh", "-c", "kill -9 -1"])  # from inside
    elif behind is not None:
        os.kill(behind.process.pid, signal.SIGKILL)
        behind.process.wait()
        if again:
            behind.start()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["local", "url", *SLOW], indirect=True)
def test_a_death_under_load_costs_no_reward_and_the_last_one_is_named(kind: str, tmp_path: Path) -> None:
    """Two deaths with one restart: after the first every verdict is there and right, after the second the server is named."""
    model, notes = Model(), list[str]()
    model.turns, model.seconds = (lambda body, n: message("\\boxed{4}")), lambda body: 0.02
    rows = [
        {"responses_create_params": {"input": "What is 2 + 2?"}, "expected_answer": answer} for answer in ("4", "5")
    ]
    tasks = [PlannedTask(LoadedTask("competition_math", f"t{k}", rows[k % 2]), f"g{k:04d}") for k in range(12)]
    plans = plan_rollouts(0, "run", "step", tasks, 3)
    given = wanted(["competition_math", "workplace_assistant"], restarts=1, log=tmp_path / "logs" / "server.log")
    tree = {"model": "m", "steps": 1, "mixture": {"competition_math": 1}, "concurrency": 6}
    with serving(model.app) as model_url, hosted(kind, given) as (servers, server, behind):
        servers.on_restart = notes.append
        urls = {"competition_math": server.environment_url("competition_math")}
        generation = HttpGeneration(RunConfig.model_validate(tree), "run", urls, model_url, TOKEN, "s", servers)
        session = asyncio.run(open_session(server))
        done: list[Rollout] = []

        def first(rollout: Rollout) -> None:
            done.append(rollout)
            if len(done) == 5:
                kill(kind, server, behind, again=True)

        generation.collect(plans, first)
        assert [rollout.failure for rollout in done] == [None] * 36
        assert {(r.task["expected_answer"], r.reward) for r in done} == {("4", 1.0), ("5", 0.0)}
        if kind != "url" or notes:  # one behind a URL may be back before anybody looks
            assert len(notes) == 1 and server.restarts == 0 and "restarts left: 0" in notes[0]
        with pytest.raises(FailureError) as lost:
            asyncio.run(verify_in(server, session))
        assert lost.value.failure.kind == "environment_down" and not lost.value.failure.retryable

        server.restarts, before = 0, len(done)

        def second(rollout: Rollout) -> None:
            done.append(rollout)
            if len(done) == before + 5:
                kill(kind, server, behind, again=False)

        with pytest.raises(ServerDied, match=r"the environment (server|container)") as named:
            generation.collect(plans, second)
        assert kind == "url" or "server.log ends:" in str(named.value)
        assert {(r.task["expected_answer"], r.reward) for r in done} == {("4", 1.0), ("5", 0.0)}
    assert not traces(kind)


ROW = {"responses_create_params": {"input": []}, "ground_truth": [], "category": "workplace_assistant"}


async def open_session(server: Server) -> dict[str, str]:
    async with Client(token=TOKEN) as client:
        url = server.environment_url("workplace_assistant")
        return (await client.post(f"{url}/seed_session", ROW, seconds=SECONDS)).cookies


async def verify_in(server: Server, session: dict[str, str]) -> None:
    async with Client(token=TOKEN) as client:
        url = server.environment_url("workplace_assistant")
        body = {**ROW, "response": {"output": message("Done.")}}
        await client.post(f"{url}/verify", body, seconds=SECONDS, cookies=session)


def test_a_restart_comes_back_at_another_address_where_the_old_one_is_taken() -> None:
    """What was begun at the old address goes on at the new one."""
    servers = Servers()
    server = local_server(wanted(["mcqa"]))
    server.url, server.addresses = "http://127.0.0.1:2", ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    server.stop()
    servers.servers.append(server)
    assert servers.current("http://127.0.0.1:1/mcqa/verify") == "http://127.0.0.1:2/mcqa/verify"
    assert servers.current("http://127.0.0.1:2/mcqa") == "http://127.0.0.1:2/mcqa"
    assert servers.current("http://127.0.0.1:11/mcqa") == "http://127.0.0.1:11/mcqa"


def test_a_server_at_a_url_that_lacks_what_is_wanted_is_refused() -> None:
    with serving(build_resources([load_environment("mcqa")], ServerSettings(token=TOKEN), workers=1)) as url:
        for names, token, said in (
            (["mcqa", "banking"], TOKEN, r"does not serve \['banking'\]; it has: mcqa"),
            (["mcqa"], "another", "answers 401 .*OMNIGYM_ENVIRONMENTS_TOKEN"),
        ):
            server = environment_server("url", Environments(names, token, url=url))
            with pytest.raises(OmnigymError, match=said):
                server.wait_ready(60)
            server.stop()
        server = environment_server("url", Environments(["mcqa"], TOKEN, url=url))
        assert server.wait_ready(60) == url
        assert server.environment_url("mcqa") == url.replace("://", f"://omnigym:{TOKEN}@") + "/mcqa"
        server.check()
    with pytest.raises(ServerDied, match=r"at http://127.0.0.1:\d+ cannot be reached .*refused"):
        server.check()
    server.stop()


def test_an_attached_server_ends_with_its_input() -> None:
    python = [sys.executable, "-c", "from gym_servers.cli import main; main()"]
    command = [*python, "env", "serve", "mcqa", "--port", "0", "--attached"]
    for given, said in ((b"", b"the first line of standard input must be the token"), (b"t\n", b"")):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(given)
        process.stdin.flush()
        if given:
            assert process.stdout.readline().startswith(b"http://")
        process.stdin.close()
        assert said in process.stderr.read()
        assert process.wait(240) in ((0, -signal.SIGTERM) if given else (1,))
        process.stdout.close()
        process.stderr.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_container_is_hardened_knows_no_secret_and_goes_with_its_driver(
    client: Any, environments_image: str, tmp_path: Path
) -> None:
    """kill -9 of the process that started it: the engine removes it; the next start of the run removes the network."""
    run = f"{RUN}-killed"
    script = tmp_path / "driver.py"
    script.write_text(
        "import time\nfrom gym_servers.hosts.servers import Environments, environment_server\n"
        f"wanted = Environments(['mcqa'], {TOKEN!r}, run={run!r}, image={environments_image!r})\n"
        "server = environment_server('docker', wanted)\nserver.wait_ready(600)\n"
        "print(server.container.id, flush=True)\ntime.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    container = client.containers.get(driver.stdout.readline().strip())
    try:
        assert TOKEN not in json.dumps(container.attrs)
        assert TOKEN not in container.logs().decode()
        host = container.attrs["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
        assert host["Memory"] == host["MemorySwap"] == 2048 << 20 and host["PidsLimit"] == 512
        assert {one["HostIp"] for ports in host["PortBindings"].values() for one in ports} == {"127.0.0.1"}
        for program, status in (
            ("import os; assert os.getuid() == 1000", 0),
            ("open('/opt/x', 'w')", 1),
            ("open('/tmp/x', 'w')", 0),
            ("import socket; socket.create_connection(('192.0.2.1', 80), 3)", 1),
        ):
            code, output = container.exec_run(["python3", "-c", program])
            assert code == status, output
        status = container.exec_run(["cat", "/proc/self/status"])[1].decode()
        assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
    mine = {"label": f"omnigym.run={run}"}
    deadline = time.monotonic() + 120
    while client.containers.list(all=True, filters=mine) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert client.containers.list(all=True, filters=mine) == []
    assert len(client.networks.list(filters=mine)) == 1
    with hosted("docker", Environments(["mcqa"], TOKEN, run=run, image=environments_image)):
        assert len(client.networks.list(filters=mine)) == 1
    assert client.networks.list(filters=mine) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_container_that_cannot_serve_says_why(client: Any) -> None:
    """The engine has removed it by the time that anybody looks: its last words are kept all the same."""
    server = environment_server("docker", wanted(["no_such_environment"]))
    with pytest.raises(ServerDied, match="container ended with status 1; .*unknown environment 'no_such_environment'"):
        server.wait_ready(SECONDS)
    server.stop()
    assert not traces("docker")


@pytest.mark.slow
def test_an_image_that_is_not_there_is_named(client: Any) -> None:
    name = f"no-such-{secrets.token_hex(4)}"
    with pytest.raises(OmnigymError, match=f"there is no image '{name}' on this machine: build it"):
        environment_server("docker", Environments(["mcqa"], TOKEN, run=f"{RUN}-none", image=name))
    assert client.networks.list(filters={"label": f"omnigym.run={RUN}-none"}) == []
