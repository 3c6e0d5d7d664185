"""A profile: how often the starting checkpoint solves each task (spec section 2, point 1), in memory and as a parquet file.

Columns of the file: task_id, domain (the environment), pass_rate (mean reward of the task's n rollouts, in [0, 1]), n, stderr (of
pass_rate), mean_tokens (sampled tokens of a rollout), truncated (share of rollouts), weights (checksum of the model's; one in a file,
since a profile is of one model). Strings are numpy's fixed-width ones, as wide as the longest: a million tasks are some 200 MB, and never
a million Python objects.

A Profile is sorted by (domain, task_id), whatever the order it is made from: nothing that is planned from it depends on that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gym_servers.protocol import OmnigymError
from gym_servers.rows import whole_file

ROW_GROUP = 65_536
SCHEMA = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("pass_rate", pa.float64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("stderr", pa.float64(), nullable=False),
        pa.field("mean_tokens", pa.float64(), nullable=False),
        pa.field("truncated", pa.float64(), nullable=False),
        pa.field("weights", pa.string(), nullable=False),
    ]
)
"""The file's columns, in this order."""
DTYPES: dict[str, type[np.generic]] = {
    "task_id": np.str_,
    "domain": np.str_,
    "pass_rate": np.float64,
    "n": np.int64,
    "stderr": np.float64,
    "mean_tokens": np.float64,
    "truncated": np.float64,
}
RANGES: dict[str, tuple[float, float]] = {
    "pass_rate": (0.0, 1.0),
    "n": (1, np.inf),
    "stderr": (0.0, np.inf),
    "mean_tokens": (0.0, np.inf),
    "truncated": (0.0, 1.0),
}


class ProfileError(OmnigymError):
    """A profile that cannot be used: names file, row, field, and what to do."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Arrays of shape [tasks], sorted by (domain, task_id); making one checks and sorts. Raises ProfileError."""

    task_id: NDArray[np.str_]
    domain: NDArray[np.str_]
    pass_rate: NDArray[np.float64]
    n: NDArray[np.int64]
    stderr: NDArray[np.float64]
    mean_tokens: NDArray[np.float64]
    truncated: NDArray[np.float64]
    weights: str
    """Checksum of the weights that the profile was made with."""

    def __post_init__(self) -> None:
        columns = {name: _column(name, getattr(self, name), kind) for name, kind in DTYPES.items()}
        if not isinstance(self.weights, str) or not self.weights:
            raise ProfileError(f"weights must be the checksum of the profiled model's weights, found {self.weights!r}")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ProfileError(f"the columns differ in length: {lengths}")
        for name, (low, high) in RANGES.items():
            column = columns[name]
            bad = np.flatnonzero(~((column >= low) & (column <= high) & np.isfinite(column)))
            if len(bad):
                wanted = f"at least {low:g}" if high == np.inf else f"in [{low:g}, {high:g}]"
                raise ProfileError(
                    f"{_where(columns, bad[0])}: field '{name}' must be {wanted}, found {column[bad[0]]}"
                    + (f" ({len(bad)} such rows)" if len(bad) > 1 else "")
                    + "; profile the task again, or leave it out"
                )
        for name in ("task_id", "domain"):
            bad = np.flatnonzero(columns[name] == "")
            if len(bad):
                raise ProfileError(f"row {bad[0]}: field '{name}' is empty; every task needs one")
        order = np.lexsort((columns["task_id"], columns["domain"]))
        names, domains = columns["task_id"][order], columns["domain"][order]
        twice = np.flatnonzero((names[1:] == names[:-1]) & (domains[1:] == domains[:-1]))
        if len(twice):
            first, second = sorted((order[twice[0]], order[twice[0] + 1]))
            raise ProfileError(
                f"{_where(columns, second)}: is in row {first} too"
                + (f" ({len(twice)} such rows)" if len(twice) > 1 else "")
                + "; a task has one row: keep the newer one"
            )
        for name, column in columns.items():
            object.__setattr__(self, name, column[order])
            getattr(self, name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.task_id)

    @property
    def domains(self) -> list[str]:
        """The domains that have a task, sorted."""
        return [str(name) for name in np.unique(self.domain)]

    def rows(self, domain: str) -> slice:
        """Where the tasks of `domain` stand: they follow each other."""
        return slice(
            int(np.searchsorted(self.domain, domain, "left")), int(np.searchsorted(self.domain, domain, "right"))
        )

    def find(self, domain: str, task_ids: NDArray[np.str_]) -> NDArray[np.int64]:
        """Index of each of the domain's `task_ids`, [len(task_ids)]; -1 where the profile has no such task."""
        rows = self.rows(domain)
        known = self.task_id[rows]
        if not len(known):
            return np.full(len(task_ids), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(known, task_ids), len(known) - 1)
        return np.where(known[place] == task_ids, place + rows.start, -1).astype(np.int64)

    def take(self, indices: NDArray[np.int64]) -> Profile:
        """The profile of these tasks alone, such as those that a run has."""
        return replace(self, **{name: getattr(self, name)[indices] for name in DTYPES})


def _column(name: str, values: Any, kind: type[np.generic]) -> NDArray[Any]:
    """`values` as a one-dimensional array of `kind`. Raises ProfileError."""
    given = np.asarray(values)
    if given.ndim != 1:
        raise ProfileError(f"field '{name}' must be one value a task, found an array of shape {given.shape}")
    if len(given) and not np.issubdtype(given.dtype, kind) and not np.can_cast(given.dtype, kind, "safe"):
        raise ProfileError(f"field '{name}' must be {kind.__name__}, found {given.dtype}")
    return given.astype(kind, copy=False)


def _where(columns: dict[str, NDArray[Any]], row: int) -> str:
    return f"row {row} (domain '{columns['domain'][row]}', task '{columns['task_id'][row]}')"


class ProfileWriter:
    """Appends batches of rows to a profile's file, a row group each; made by `profile_writer`."""

    def __init__(self, writer: pq.ParquetWriter, weights: str) -> None:
        self._writer, self._weights = writer, weights

    def append(self, **columns: NDArray[Any] | list[Any]) -> None:
        """One row group: the arrays of a Profile by name, all of one length."""
        weights = pa.repeat(pa.scalar(self._weights, pa.string()), len(columns["task_id"]))
        arrays = [pa.array(columns[name], SCHEMA.field(name).type) for name in DTYPES]
        self._writer.write_table(pa.table([*arrays, weights], SCHEMA))


@contextmanager
def profile_writer(path: Path, weights: str) -> Iterator[ProfileWriter]:
    """A profile's file, written group by group; it is at `path` whole once the block ends well, else not at all.
    What is written is checked when it is read, or by making a Profile."""
    with whole_file(path) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        yield ProfileWriter(writer, weights)


def write_profile(path: Path, profile: Profile) -> None:
    """Write `profile`, whole or not at all."""
    with profile_writer(path, profile.weights) as writer:
        for start in range(0, len(profile), ROW_GROUP):
            writer.append(**{name: getattr(profile, name)[start : start + ROW_GROUP] for name in DTYPES})


def read_profile(path: Path) -> Profile:
    """The profile in `path`. Raises ProfileError, which names the file."""
    if not path.is_file():
        raise ProfileError(f"no profile '{path}': `omnigym profile` makes one")
    try:
        with pq.ParquetFile(path) as file:
            return _read(file)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise ProfileError(
            f"{path}: not a parquet file that can be read ({error}); make it with `omnigym profile`"
        ) from None


def _read(file: pq.ParquetFile) -> Profile:
    schema = file.schema_arrow
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        raise ProfileError(f"column {missing} is missing; found {schema.names}: `omnigym profile` writes them all")
    for name in SCHEMA.names:
        kind, found = SCHEMA.field(name).type, schema.field(name).type
        fits = {
            pa.string(): pa.types.is_string(found) or pa.types.is_large_string(found),
            pa.int64(): pa.types.is_integer(found),
            pa.float64(): pa.types.is_floating(found) or pa.types.is_integer(found),
        }
        if not fits[kind]:
            raise ProfileError(f"column '{name}' must be {kind}, found {found}")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in DTYPES}
    weights: dict[str, int] = {}  # and the first row of each
    row = 0
    for batch in file.iter_batches(ROW_GROUP, columns=SCHEMA.names):
        for name in SCHEMA.names:
            column = batch.column(name)
            if column.null_count:
                null = row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
                raise ProfileError(f"row {null}: field '{name}' is null; every task needs one")
            if name == "weights":
                for value in column.unique().to_pylist():
                    weights.setdefault(value, row + column.index(value).as_py())
            else:
                kind = DTYPES[name]
                values = column.to_pylist() if kind is np.str_ else column.to_numpy(zero_copy_only=False)
                parts[name].append(np.asarray(values, dtype=kind))
        row += batch.num_rows
    if not row:
        raise ProfileError("it holds no task; profile some")
    if len(weights) > 1:
        (first, _), (other, at), *_ = weights.items()
        raise ProfileError(
            f"row {at}: field 'weights' is '{other}', that of row 0 is '{first}': a profile is of one model; profile all "
            "tasks with the same weights"
        )
    return Profile(**{name: np.concatenate(found) for name, found in parts.items()}, weights=next(iter(weights)))
