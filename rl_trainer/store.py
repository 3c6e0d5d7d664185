"""The run folder: what a run writes, so that it can be looked at, and go on after a kill.

    runs/<name>-<time>/
      config.yaml          the resolved configuration
      mode                 what the folder is made by
      metrics.jsonl        one line per step, `{"step": ...}`; evaluations have `{"evaluation": ...}`
      rollouts/LABEL.jsonl.gz   one gzip member per rollout, each one JSON line (zcat reads it)
      rollouts/LABEL.tokens     token arrays of those rollouts, end to end
      rollouts/LABEL.done       commit marker: sizes and count, groups that were dropped; written last
      observed.jsonl       what each group earned, profiles/ that the run began with and made itself
      checkpoints/, tensorboard/, summary.json, report.html

LABEL is `step_000012` or the name of an evaluation. Rollouts are write-ahead: the marker is on disk before the optimiser step,
and a label without one is void. Token arrays: per segment token_ids (<i4), lp_gen (<f8) and mask (u1), so that floats come
back bit for bit.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from gym_servers.protocol import OmnigymError, Rollout, Segment


class StoreError(OmnigymError):
    """A run folder that cannot be read or written; says which file and what to do."""


def step_label(step: int) -> str:
    """Label of a training step's rollouts."""
    return f"step_{step:06d}"


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, body: bytes) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}. Free some space, then resume the run.") from error


def append(path: Path, body: bytes) -> None:
    """Append to a file, and have it on disk."""
    try:
        with path.open("ab") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}. Free some space, then resume the run.") from error


class RolloutWriter:
    """Writes the rollouts of one label as they end; `commit` makes them count."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label, self.count = folder, label, 0
        (folder / f"{label}.done").unlink(missing_ok=True)
        self._lines: IO[bytes] = (folder / f"{label}.jsonl.gz").open("wb")
        self._tokens: IO[bytes] = (folder / f"{label}.tokens").open("wb")

    def add(self, rollout: Rollout) -> None:
        """Append one rollout. Raises StoreError where the disk is full."""
        record = rollout.model_dump(mode="json", exclude={"segments"})
        record["segments"] = [
            {"n": len(s.token_ids), "weight_version": s.weight_version, "break_reason": s.break_reason}
            for s in rollout.segments
        ]
        with self._full_disk():
            record["tokens_at"] = self._tokens.tell()
            for segment in rollout.segments:
                self._tokens.write(np.asarray(segment.token_ids, dtype="<i4").tobytes())
                self._tokens.write(np.asarray(segment.lp_gen, dtype="<f8").tobytes())
                self._tokens.write(np.asarray(segment.mask, dtype="u1").tobytes())
            self._lines.write(gzip.compress(orjson.dumps(record) + b"\n", 5, mtime=0))
        self.count += 1

    def commit(self, dropped: Sequence[str] = ()) -> None:
        """Flush to disk, then write the marker. dropped: groups that are not trained on (rl_trainer/dynamic_sampling.py)."""
        sizes = {}
        with self._full_disk():
            for file in (self._lines, self._tokens):
                file.flush()
                os.fsync(file.fileno())
                sizes[Path(file.name).suffix] = file.tell()
                file.close()
        marker: dict[str, Any] = {"count": self.count, "lines": sizes[".gz"], "tokens": sizes[".tokens"]}
        if dropped:
            marker["dropped"] = list(dropped)
        write_whole(self.folder / f"{self.label}.done", json.dumps(marker).encode())

    def abandon(self) -> None:
        """Close without a marker: what was written is void."""
        for file in (self._lines, self._tokens):
            with suppress(OSError):  # of a full disk: what ended the step is said already
                file.close()

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write the rollouts {self.folder / self.label}.*: {error.strerror}. Free some space, then resume."
            ) from error


class RunStore:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rollouts = folder / "rollouts"
        self.checkpoints = folder / "checkpoints"
        self.metrics_file = folder / "metrics.jsonl"

    @classmethod
    def create(cls, runs_folder: Path, name: str, config: str) -> RunStore:
        """A new folder `<name>-<time>` under `runs_folder`."""
        stamp, runs_folder = time.strftime("%Y%m%d-%H%M%S"), runs_folder.resolve()  # Ray's workers may be elsewhere
        for suffix in ("", *(f"-{k}" for k in range(2, 100))):
            folder = runs_folder / f"{name}-{stamp}{suffix}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise StoreError(f"cannot make the run folder {folder}: {error.strerror}") from None
            store = cls(folder)
            store.rollouts.mkdir()
            store.checkpoints.mkdir()
            write_whole(folder / "config.yaml", config.encode())
            return store
        raise StoreError(f"no free name for a run folder {name}-{stamp} in {runs_folder}")

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """An existing run. Raises StoreError where `folder` is none."""
        if not (folder / "config.yaml").is_file():
            raise StoreError(f"'{folder}' is no run folder: it holds no config.yaml")
        store = cls(folder.resolve())
        store.rollouts.mkdir(exist_ok=True)
        store.checkpoints.mkdir(exist_ok=True)
        return store

    def writer(self, label: str) -> RolloutWriter:
        """Start (or start again) the rollouts of `label`."""
        return RolloutWriter(self.rollouts, label)

    def committed(self, label: str) -> bool:
        """Whether the rollouts of `label` are complete."""
        return (self.rollouts / f"{label}.done").is_file()

    def read(self, label: str) -> list[Rollout]:
        """The committed rollouts of `label`. Raises StoreError where they are absent or damaged."""
        return read_rollouts(self.rollouts, label)

    def void(self, label: str) -> None:
        """Make the rollouts of `label` count no longer."""
        (self.rollouts / f"{label}.done").unlink()

    @property
    def start_profile(self) -> Path:
        """The run's own copy of `curriculum.profile`, where it has one: a resume does not depend on what becomes of that file."""
        return self.folder / "profiles" / "start.parquet"

    def keep_profile(self, path: Path) -> None:
        """Copy the profile that the run begins with."""
        if not self.start_profile.is_file():
            self.start_profile.parent.mkdir(exist_ok=True)
            write_whole(self.start_profile, path.read_bytes())

    def profile_path(self, step: int) -> Path:
        """The profile of the plan that begins at `step`, where one was made in the run."""
        return self.folder / "profiles" / f"{step_label(step)}.parquet"

    def profiles(self) -> dict[int, Path]:
        """The profiles that were made in the run, by the first step of their plan."""
        paths = sorted((self.folder / "profiles").glob("step_*.parquet"))
        return {int(path.stem.removeprefix("step_")): path for path in paths}

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        append(self.metrics_file, _line(record))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Records of metrics.jsonl; a line that a kill cut off at the end is left out."""
        if not self.metrics_file.is_file():
            return
        for line in self.metrics_file.read_bytes().splitlines():
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record

    def rewrite_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Put `rows` in place of all of metrics.jsonl."""
        write_whole(self.metrics_file, b"".join(_line(row) for row in rows))

    def claim(self, mode: str) -> None:
        """Say what this folder is made by: `train`, `rollouts` or `from rollouts`. Raises StoreError where it was another of them: a
        step's rollouts are not what the other would have sampled."""
        file = self.folder / "mode"
        before = file.read_text() if file.is_file() else mode
        if before == mode:
            write_whole(file, mode.encode())
            return
        fix = {
            "train": "leave --rollouts-only out",
            "rollouts": f"go on with --rollouts-only, or train on them with --from-rollouts {self.folder}",
            "from rollouts": "it cannot be resumed; export its checkpoint, and start a new run with that as its model",
        }
        raise StoreError(f"the run in {self.folder} was begun as '{before}', not as '{mode}': {fix[before]}")

    def lock(self) -> None:
        """Hold this folder until the process ends, however it ends. Raises StoreError where another process holds it."""
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"the run in {self.folder} is going on in another process: stop that one first") from None


def _line(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def mark_dropped(rollouts: Sequence[Rollout], groups: Sequence[str]) -> list[Rollout]:
    """The rollouts, those of `groups` marked."""
    marked = set(groups)
    return [r.model_copy(update={"dropped": True}) if r.group in marked else r for r in rollouts]


def is_dropped(rollout: Rollout) -> bool:
    """Whether a rollout was sampled for its step and is not trained on."""
    return bool((rollout.model_extra or {}).get("dropped"))


def read_rollouts(folder: Path, label: str) -> list[Rollout]:
    """Rollouts of `label` in `folder`, in the order in which they ended; those that were dropped are marked."""
    marker_file = folder / f"{label}.done"
    if not marker_file.is_file():
        raise StoreError(f"no complete rollouts '{label}' in {folder}")
    marker = json.loads(marker_file.read_text())
    lines = (folder / f"{label}.jsonl.gz").read_bytes()
    tokens = (folder / f"{label}.tokens").read_bytes()
    for name, found, expected in (("jsonl.gz", len(lines), marker["lines"]), ("tokens", len(tokens), marker["tokens"])):
        if found != expected:
            raise StoreError(f"{folder}/{label}.{name} has {found} bytes, its marker says {expected}: it is damaged")
    if not lines:
        return []
    rollouts = [_rollout(orjson.loads(line), tokens) for line in gzip.decompress(lines).splitlines()]
    return mark_dropped(rollouts, marker.get("dropped", ()))


def _rollout(record: dict[str, Any], tokens: bytes) -> Rollout:
    place = record.pop("tokens_at")
    segments = []
    for head in record.pop("segments"):
        n = head.pop("n")
        segments.append(
            Segment(
                token_ids=np.frombuffer(tokens, "<i4", n, place).tolist(),
                lp_gen=np.frombuffer(tokens, "<f8", n, place + 4 * n).tolist(),
                mask=np.frombuffer(tokens, "u1", n, place + 12 * n).tolist(),
                **head,
            )
        )
        place += 13 * n
    return Rollout(segments=segments, **record)
