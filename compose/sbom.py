"""What is in the image of the Python services, as a CycloneDX 1.6 bill of materials: `python compose/sbom.py > compose/sbom.json`.

Components are the lines of requirements-base.lock and the two images of compose/docker-compose.yaml. The document says nothing of when
it was made, so that the same lock gives the same file (a test compares them).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def packages(lock: str) -> list[tuple[str, str]]:
    """(name as PyPI normalises it, version) of every line."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in lock.splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return sorted((re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in pairs)


def images(compose: str) -> list[tuple[str, str]]:
    """(repository, tag) of the images that are not built here."""
    named = re.findall(r"\$\{(?:BASE|REDIS)_IMAGE:-([\w./-]+):([\w.-]+)\}", compose)
    return sorted(set(named))


def bill(lock: str, compose: str, version: str) -> dict[str, Any]:
    """The document."""
    components = [
        {"type": "library", "name": name, "version": number, "purl": f"pkg:pypi/{name}@{number}", "bom-ref": name}
        for name, number in packages(lock)
    ]
    components += [
        {
            "type": "container",
            "name": name,
            "version": tag,
            "purl": f"pkg:docker/{name}@{tag}",
            "bom-ref": f"image/{name}",
        }
        for name, tag in images(compose)
    ]
    subject = {
        "type": "container",
        "name": "omnigym-environments",
        "version": version,
        "bom-ref": "omnigym-environments",
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": [{"ref": subject["bom-ref"], "dependsOn": [one["bom-ref"] for one in components]}],
    }


def main() -> None:
    """Print it."""
    project = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert found is not None, "pyproject.toml has no version"
    texts = [(ROOT / name).read_text() for name in ("requirements-base.lock", "compose/docker-compose.yaml")]
    json.dump(bill(*texts, found[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
