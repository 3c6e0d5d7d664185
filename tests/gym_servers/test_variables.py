"""A deployment's secrets, by variable or by file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gym_servers.protocol import OmnigymError
from gym_servers.variables import variable, with_variables


def test_a_value_comes_from_the_variable_or_from_the_file_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMNIGYM_X", raising=False)
    assert variable("OMNIGYM_X") is None
    monkeypatch.setenv("OMNIGYM_X", "")
    assert variable("OMNIGYM_X") is None
    file = tmp_path / "x"
    file.write_text("  of the file\n")
    monkeypatch.setenv("OMNIGYM_X_FILE", str(file))
    assert variable("OMNIGYM_X") == "of the file"
    monkeypatch.setenv("OMNIGYM_X", "of the variable")
    with pytest.raises(OmnigymError, match="both OMNIGYM_X and OMNIGYM_X_FILE are set"):
        variable("OMNIGYM_X")
    monkeypatch.delenv("OMNIGYM_X_FILE")
    assert variable("OMNIGYM_X") == "of the variable"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b" \n", "is empty"), (b"\xff", "cannot be read")]
)
def test_a_file_without_a_value_is_named(
    content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.delenv("OMNIGYM_X", raising=False)
    monkeypatch.setenv("OMNIGYM_X_FILE", str(file))
    with pytest.raises(OmnigymError, match=f"OMNIGYM_X_FILE '{file}' {message}"):
        variable("OMNIGYM_X")


def test_a_child_process_gets_the_value_and_no_file_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGYM_TOKEN_FILE", "/run/secrets/token")
    monkeypatch.setenv("OMNIGYM_SECRET_FILE", "/run/secrets/secret")
    given = with_variables({"OMNIGYM_TOKEN": "t"})
    assert given["OMNIGYM_TOKEN"] == "t" and "OMNIGYM_TOKEN_FILE" not in given
    assert given["OMNIGYM_SECRET_FILE"] == "/run/secrets/secret"
