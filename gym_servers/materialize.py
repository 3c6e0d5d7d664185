"""Task rows to rollout rows, as NeMo-Gym's collection does it: the agent filled in, parameters overridden, rows repeated.

Every rollout row gets `_ng_task_index` and `_ng_rollout_index`. Rows that are equal count as one task there: they share the task
index and go on with its rollout index. (omnigym's own task ids keep such rows apart: gym_servers/protocol.py.)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gym_servers.protocol import OmnigymError

Repeats = int | Mapping[str, int]


class MaterializeError(OmnigymError, ValueError):
    """Rows that cannot be repeated as asked."""


def _check_repeats(repeats: Repeats) -> None:
    given = {"num_repeats": repeats} if isinstance(repeats, int) else dict(repeats)
    for name, count in given.items():
        if count < 1:
            raise MaterializeError(f"num_repeats of '{name}' is {count}: it must be at least 1")


def _repeats_of(repeats: Repeats, agent: str) -> int:
    if isinstance(repeats, int):
        return repeats
    count = repeats.get(agent, repeats.get("_default"))
    if count is None:
        raise MaterializeError(
            f"num_repeats says nothing of agent '{agent}': add it, or '_default'; there are {sorted(repeats)}"
        )
    return count


def rollout_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    agent_name: str | None = None,
    num_repeats: Repeats = 1,
    limit: int | None = None,
    responses_create_params: Mapping[str, Any] | None = None,
    add_seed: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rollout rows of `rows`, in order, streamed.

    agent_name: for rows without `agent_ref`. num_repeats: a count, or one per agent with `_default`. limit: of input rows.
    responses_create_params: laid over each row's own, one level deep. add_seed: the rollout index as the sampling seed, in
    `metadata.extra_body`. Raises MaterializeError.
    """
    _check_repeats(num_repeats)
    indices: dict[str, int] = {}
    repeated: dict[int, int] = {}
    for number, source in enumerate(rows):
        if limit is not None and number >= limit:
            return
        row = copy.deepcopy(dict(source))
        if not (row.get("agent_ref") or {}).get("name"):
            if agent_name is None:
                raise MaterializeError(f"row {number} has no agent: give agent_name, or 'agent_ref' in the row")
            row["agent_ref"] = {"name": agent_name}
        key = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        task = row.get("_ng_task_index")
        if task is None:
            task = row["_ng_task_index"] = indices.setdefault(key, len(indices))
        if responses_create_params:
            row["responses_create_params"] = {**row.get("responses_create_params", {}), **responses_create_params}
        for _ in range(_repeats_of(num_repeats, str(row["agent_ref"]["name"]))):
            index = repeated.get(task, 0)
            repeated[task] = index + 1
            made = copy.deepcopy(row)
            made["_ng_rollout_index"] = index
            if add_seed:
                _seed(made["responses_create_params"], index)
            yield made


def _seed(params: dict[str, Any], seed: int) -> None:
    metadata = dict(params.get("metadata") or {})
    extra = json.loads(metadata.get("extra_body") or "{}")
    metadata["extra_body"] = json.dumps({**extra, "seed": seed})
    params["metadata"] = metadata
