"""Reading and writing JSONL: errors name the file and the line, output appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gym_servers.protocol import OmnigymError, RowError, row_task_id

MAX_TASK_ID_BYTES = 200
"""In UTF-8: the signed id of a rollout, at most 512 bytes, holds it and the run's name."""


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """One JSON object. Raises RowError that names `where`."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        tail = line[-40:].decode(errors="replace").strip()
        raise RowError(f"{where}: not valid JSON ({error}); the line ends in '{tail}': is it cut off?") from None
    if not isinstance(row, dict):
        raise RowError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """("file:number", line) of each line that is not blank. Raises RowError where the file is missing."""
    if not path.is_file():
        raise RowError(f"no file '{path}'")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line


class TaskNames:
    """Ids of the tasks of one environment, in the order in which they are read. A row without an id gets one; equal rows do not merge."""

    def __init__(self) -> None:
        self._occurrences: Counter[str] = Counter()
        self._given: dict[str, str] = {}

    def name(self, where: str, row: dict[str, Any]) -> str:
        """The id of `row`. Raises RowError for one that is no string, is too long or comes twice."""
        task_id = row.get("task_id")
        if task_id is None:
            plain = row_task_id(row)
            task_id = row_task_id(row, self._occurrences[plain])
            self._occurrences[plain] += 1
        elif not isinstance(task_id, str):
            raise RowError(f"{where}: field 'task_id' must be a string, found {type(task_id).__name__}")
        elif (size := len(task_id.encode(errors="replace"))) > MAX_TASK_ID_BYTES:
            raise RowError(
                f"{where}: field 'task_id' has {size} bytes, at most {MAX_TASK_ID_BYTES} are allowed: "
                "give the task a shorter id, or none"
            )
        elif task_id in self._given:
            raise RowError(f"{where}: task_id '{task_id}' is also that of {self._given[task_id]}: ids must differ")
        else:
            self._given[task_id] = where
        return task_id


def named_tasks(
    rows: Iterable[tuple[str, dict[str, Any]]], check: Callable[[dict[str, Any]], object] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(task id, row) of (where, row), each row checked; ids as of TaskNames. Raises RowError that names where, also of `check`."""
    names = TaskNames()
    for where, row in rows:
        if check is not None:
            try:
                check(row)
            except RowError as error:
                raise RowError(f"{where}: {error}") from None
        yield names.name(where, row), row


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when the block ends well, and leaves nothing behind when it does not.

    Raises OmnigymError where the folder cannot be written or the disk is full.
    """
    if path.is_dir():
        raise OmnigymError(f"cannot write '{path}': it is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OmnigymError(f"cannot write '{path}': {error.strerror}; choose a folder that you can write to") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OmnigymError(f"cannot write '{path}': {error.strerror}; free some space, then run it again") from None
        raise
