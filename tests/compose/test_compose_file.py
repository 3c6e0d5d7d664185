"""The compose file and what the image is made of, read as files: no engine is needed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "compose"
FILE: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ONE_SHOT = ("init", "models")
RAY = {"ray-head", "ray-worker"}

REQUIRED: dict[str, Any] = {
    "user": "1000:1000",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "init": True,
    "stop_grace_period": "45s",
}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert {key: service.get(key) for key in REQUIRED} == REQUIRED
    assert service["mem_limit"] == service["memswap_limit"] and service["cpus"]
    assert isinstance(service["pids_limit"], int) and service["pids_limit"] <= 1024  # 1.29 takes no variable here
    mode = r"(mode=1777|mode=0700,uid=1000,gid=1000)"
    assert all(re.fullmatch(rf"[/\w]+:size=\d+[mg],{mode},noexec,nosuid,nodev", one) for one in service["tmpfs"])
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "extra_hosts"} & set(service)
    assert service["logging"]["options"]["max-size"]
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    if name not in ONE_SHOT:
        assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
        ready = (
            service["depends_on"].get("init") or SERVICES["ray-head"]["depends_on"]["init"]
        )  # a worker waits for its head
        assert ready == {"condition": "service_completed_successfully"}
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_completed_successfully" if other in ONE_SHOT else "service_healthy"}, (
            f"{name} starts before {other} is ready"
        )


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_and_ports_are_variables_with_pinned_defaults(name: str) -> None:
    service = SERVICES[name]
    for image in (service["image"], service.get("build", {}).get("args", {}).get("BASE_IMAGE")):
        found = image is None or re.fullmatch(r"\$\{[A-Z_]+:-[\w./-]+:(\d+\.\d+\.\d+[\w.-]*)\}", image)
        assert found, f"{name}: '{image}' must be a variable with an exact version as its default"
    for port in service.get("ports", []):
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1\}:\$\{[A-Z_]+:-\d+\}:\d+", port), f"{name}: {port}"


def test_who_reaches_whom() -> None:
    """No way out but to download a model; the service that runs programs meets the gateway alone, the cluster meets it from without."""
    published = {name for name, service in SERVICES.items() if service.get("ports")}
    networks = {name: set(service.get("networks", [])) for name, service in SERVICES.items()}
    assert published == {"gateway", "ray-head", "model"}
    assert {name for name, on in networks.items() if "edge" in on} == published | RAY
    assert all(networks[name] == {"edge"} for name in RAY | {"model"}) and networks["judge"] == {"inside"}
    assert {name for name, on in networks.items() if "download" in on} == {"models"} and networks["models"] == {
        "download"
    }
    assert {name for name, on in networks.items() if "code" in on} == {"gateway", "code"} and networks["code"] == {
        "code"
    }
    assert SERVICES["init"]["network_mode"] == "none" and not networks["init"]
    for name in ("inside", "code"):
        assert FILE["networks"][name]["internal"] is True
        assert FILE["networks"][name]["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}
    assert FILE["networks"]["edge"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_who_holds_which_secret() -> None:
    """Secrets come in files; the service that runs programs, and the gateway, know the token alone. Only init may write."""
    for name, service in SERVICES.items():
        mounts = dict(one.split(":", 1) for one in service.get("volumes", []))
        assert set(mounts) <= {"token", "keys", "redis", "ray", "models", "runs", "shm"}, (
            f"{name} mounts something else"
        )
        if name not in ONE_SHOT:
            assert all(mounts[one].endswith(":ro") for one in mounts if one not in ("redis", "runs", "shm"))
        assert ("ray" in mounts) == (name in RAY | {"init"}) and not ("keys" in mounts and name in RAY)
        assert name != "models" or set(mounts) == {"models"}
        if name in ("code", "gateway"):
            assert set(mounts) == {"token"}
        for key, value in service.get("environment", {}).items():
            assert key.endswith(("_FILE", "_PATH")) or not re.search("TOKEN|SECRET|PASSWORD", key), (
                f"{name}: {key}={value}"
            )


def test_every_environment_is_served_once_and_known_to_the_gateway() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["omnigym.environments"]
    served: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        command = service["command"]
        words = (command[-1] if command[0] == "sh" else " ".join(command)).split()
        if ["env", "serve"] in [words[k : k + 2] for k in range(len(words))]:
            served[name] = [word for word in words if word in points]
    every = [one for some in served.values() for one in some]
    assert sorted(every) == sorted(set(points) - {"reasoning_gym"})  # whose package is optional, and not in the image
    assert {f"http://{name}:8000" for name in served} == {w for w in SERVICES["gateway"]["command"] if "://" in w}
    assert set(served) <= set(SERVICES["gateway"]["depends_on"])


def test_programs_are_served_only_where_the_doctor_passes() -> None:
    (service,) = [one for one in SERVICES.values() if "competition_code" in str(one["command"])]
    assert service["command"][:2] == ["sh", "-c"]
    assert service["command"][2].startswith("omnigym sandbox doctor && exec omnigym env serve ")


def test_the_lock_of_the_image_is_what_the_base_install_needs() -> None:
    """requirements-base.lock is a part of requirements.lock: the closure of pyproject.toml's dependencies, no more."""

    def lines(name: str) -> dict[str, str]:
        read = [line.strip() for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"]
        return {normal(line.split("==")[0]): line for line in read}

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    def wanted(one: Requirement, extras: set[str]) -> bool:
        environments = [{"extra": extra, "python_full_version": f"3.11.{p}"} for extra in extras for p in (2, 14)]
        return one.marker is None or any(one.marker.evaluate(environment) for environment in environments)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = [(normal(one.name), frozenset({"", *one.extras})) for one in map(Requirement, project["dependencies"])]
    seen = set()
    full, base = lines("requirements.lock"), lines("requirements-base.lock")
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            assert ";" in full[name], f"{name} is not installed"  # another Python's
            continue
        todo += [
            (normal(r.name), frozenset({"", *r.extras})) for r in map(Requirement, needs) if wanted(r, set(extras))
        ]
    assert base == {name: full[name] for name, _ in seen}


def test_the_bill_of_materials_is_of_this_lock() -> None:
    made = subprocess.run([sys.executable, FOLDER / "sbom.py"], capture_output=True, text=True, check=True).stdout
    assert (FOLDER / "sbom.json").read_text() == made, "run: make sbom"
    assert '"pkg:pypi/aiohttp@' in made and '"pkg:docker/redis@' in made and "torch" not in made


def test_the_dockerfiles_are_portable_and_copy_no_secret() -> None:
    copied = set()
    for name in ("Dockerfile", "train.Dockerfile"):
        text = (FOLDER / name).read_text()
        assert not re.search(r"^# *syntax|--mount|<<", text, re.MULTILINE)
        assert re.search(r"^ARG BASE_IMAGE=python:3\.11\.\d+-slim-bookworm$", text, re.MULTILINE)
        assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000:1000"]
        lines = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        copied |= {word for line in lines for word in line.split()[:-1]}
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{one}" for one in copied} == {one for one in allowed if one.startswith("!")} and "*" in allowed
