"""Settings of a deployment that are no arguments: environment variables, or files that hold their values (secrets of containers)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gym_servers.protocol import OmnigymError


def variable(name: str) -> str | None:
    """The value of the environment variable `name`, else what the file named by `name`_FILE holds, without blanks around it; None
    where both are absent or empty. Raises OmnigymError for both at once, and for a file that cannot be read or is empty."""
    value, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if not file:
        return value or None
    if value:
        raise OmnigymError(f"both {name} and {name}_FILE are set: unset one")
    try:
        text = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OmnigymError(f"{name}_FILE '{file}' cannot be read: {error}") from None
    if not text:
        raise OmnigymError(f"{name}_FILE '{file}' is empty")
    return text


def with_variables(values: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process that is given `values`: this one's, without a file that names another value for one."""
    files = {f"{name}_FILE" for name in values}
    return {**{name: value for name, value in os.environ.items() if name not in files}, **values}
