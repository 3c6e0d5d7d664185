"""What an environment is: the contract between a verifier and the server, the CLI and the collector.

An environment subclasses `Environment` in its `server.py`; the verifier itself lives in `verifier.py` as a pure function.
The resources server (gym_servers/resources.py) adapts it to HTTP, `omnigym verify` runs it without a server. Both call
`quick` first, in the server's process, and hand whatever it leaves undecided to `verify` in a killable worker
(gym_servers/workers.py): model output is only ever examined by unbounded code under hard CPU, memory and wall limits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gym_servers.protocol import Item, OmnigymError, RowError, Verdict

Split = Literal["train", "heldout"]


class Settings(BaseModel):
    """Settings of an environment, from its environment.yaml and `--set key=value`. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")
    max_answer_chars: int = 65536
    """Answers are cut to this length before any parser sees them."""
    verify_cpu_seconds: float = 2.0
    """CPU time of one `verify` in a worker; past it the output is unverifiable (reward 0)."""
    verify_memory_mb: int = 1024
    """Address-space growth allowed to one worker."""


class Row(BaseModel):
    """Base of an environment's row model: `responses_create_params` and extra fields are kept."""

    model_config = ConfigDict(extra="allow")
    responses_create_params: dict[str, Any] = {}
    task_id: str | None = None


class Environment(ABC):
    """One environment. Stateless: sessions belong to the server. Must be picklable by (name, settings)."""

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings
    row_type: ClassVar[type[Row]] = Row
    reward: ClassVar[Literal["single", "group"]] = "single"
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    agent: ClassVar[str] = "tool_loop"

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings: Any = settings if settings is not None else self.settings_type()

    def check_row(self, row: dict[str, Any]) -> Row:
        """Parse and check a row. Raises RowError that names environment, task and field."""
        try:
            return self.row_type.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "(row)"
            found = sorted(key for key in row if key not in ("responses_create_params", "response"))
            raise RowError(
                f"environment '{self.name}' task '{row.get('task_id') or row.get('id') or '?'}': "
                f"field '{where}': {first['msg']}; found fields {found}"
            ) from None

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        """A verdict that bounded, linear-time code can give in the server's own process; None: ask `verify`."""
        return None

    @abstractmethod
    def verify(self, row: Row, output: list[Item]) -> Verdict:
        """Pure function of the row and the Responses output items. Runs in a killable worker."""

    async def appeal(self, row: Row, output: list[Item], verdict: Verdict) -> Verdict:
        """A second look at a verdict by whoever takes longer than code, such as a judge over HTTP; the same verdict where
        there is nobody to ask. Runs in the server's event loop, so it parses no model output. Raises FailureError."""
        return verdict

    def prepare(self) -> None:
        """Import what `verify` needs; called once where workers are forked from, outside anybody's CPU limit."""
        return None

    def gold(self, row: Row) -> list[Item] | None:
        """Output items that earn full reward; None where no gold answer can be made from a row."""
        return None

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        """`n` seeded task rows of graded difficulty (`difficulty` in [0, 1] is a field of each row). Deterministic in
        (n-prefix, seed, split); parameters of train and heldout are disjoint."""
        raise OmnigymError(f"environment '{self.name}' has no generator: its tasks come from a file")

    @classmethod
    def folder(cls) -> Path:
        """Folder with environment.yaml, cases.jsonl and README.md."""
        import importlib

        module = importlib.import_module(cls.__module__)
        assert module.__file__ is not None
        return Path(module.__file__).parent
