"""Options of the curriculum: the sub-tree `curriculum:` of a run's configuration, and all that a plan depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gym_servers.protocol import OmnigymError

Order = Literal["gaussian", "random", "sequential"]


class CurriculumError(OmnigymError):
    """A plan that cannot be made, or not be gone on with: says which domain or option, and what to do."""


class ReplanConfig(BaseModel):
    """When a run makes a new profile with its best checkpoint, and a new plan of it for the steps that are left (report, section 3.2.2:
    once validation plateaus)."""

    model_config = ConfigDict(extra="forbid")

    patience: int = Field(default=0, ge=0)
    """So many validations (`val.every`) in a row without an improvement; 0: never."""
    min_improvement: float = Field(default=0.0, ge=0, le=1)
    """By more than this a pass rate must exceed the best one before it, to be an improvement."""


class CurriculumConfig(BaseModel):
    """The sub-tree `curriculum:` of a run's configuration.

    The wanted pass rates of a batch are a Gaussian around a mean that falls linearly from `start_mean` in the first step to
    `end_mean` in the last (report, section 3.2.2; the figures are read off its figure 6).
    """

    model_config = ConfigDict(extra="forbid")

    profile: Path | None = None
    """What `omnigym profile` wrote."""
    start_mean: float = Field(default=0.75, ge=0, le=1)
    end_mean: float = Field(default=0.35, ge=0, le=1)
    sigma: float = Field(default=0.15, gt=0, allow_inf_nan=False)
    """Standard deviation, in units of pass rate."""
    hold_out_unsolved: bool = False
    """Leave out tasks that no rollout solved, until they are profiled again."""
    samples: int = Field(default=8, ge=1)
    """Rollouts of a task in a profile of this run."""
    replan: ReplanConfig = ReplanConfig()


class CurriculumOptions(BaseModel):
    """All that a plan depends on besides the profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratios: dict[str, float]
    """Share of each domain; normalised, and 0 leaves a domain out."""
    batch_size: int = Field(ge=1)
    """Tasks a step."""
    steps: int = Field(ge=1)
    """Steps over which the mean falls; there is no batch after them."""
    seed: int = 0
    order: Order = "gaussian"
    start_mean: float = Field(default=0.75, ge=0, le=1)
    end_mean: float = Field(default=0.35, ge=0, le=1)
    sigma: float = Field(default=0.15, gt=0, allow_inf_nan=False)
    hold_out_unsolved: bool = False

    def mean(self, step: int) -> float:
        """The target's mean in `step`, counted from 0."""
        return self.start_mean + (self.end_mean - self.start_mean) * (step / max(1, self.steps - 1))
