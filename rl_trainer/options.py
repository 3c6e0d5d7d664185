"""Options of the trainer's numerics. The run's configuration embeds these models; an unknown key is an error."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Options(BaseModel):
    """Base: unknown keys are refused, so that a misspelt option cannot be ignored."""

    model_config = ConfigDict(extra="forbid")


class ImportanceOptions(Options):
    """Masked importance sampling, algorithm.md section 1 [paper; bounds ours]."""

    mode: Literal["mask", "truncate", "none"] = "mask"
    token_mask: bool = True
    sequence_mask: bool = True
    low: float = Field(default=0.5, ge=0)
    high: float = Field(default=5.0, gt=0)
    sequence_max: float = Field(default=2.0, ge=1)
    warn_fraction: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> ImportanceOptions:
        if self.low >= self.high:
            raise ValueError(f"importance.low ({self.low}) must be below importance.high ({self.high})")
        return self


class AlgorithmOptions(Options):
    """GRPO, algorithm.md section 1."""

    baseline: Literal["leave_one_out", "mean"] = "leave_one_out"
    normalize_std: bool = True
    overlong_filtering: bool = True
    overlong_in_baseline: bool = False
    importance: ImportanceOptions = ImportanceOptions()
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    clip_high: float = Field(default=0.28, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)
    ratio: Literal["token", "sequence"] = "token"
    sequence_clip_low: float = Field(default=3e-4, ge=0, lt=1)
    sequence_clip_high: float = Field(default=4e-4, ge=0)
    kl_beta: float = Field(default=0.0, ge=0)
    optimizer_steps_per_batch: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, gt=0)

    def check_group_size(self, rollouts_per_task: int) -> None:
        """A group of one has no baseline: every advantage would be 0 and training would silently do nothing."""
        if rollouts_per_task < 2:
            raise ValueError(
                f"rollouts per task is {rollouts_per_task}, but baseline '{self.baseline}' compares rollouts of one "
                "task: set it to 2 or more"
            )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerOptions(Options):
    """AdamW [recipe]."""

    lr: float = Field(default=3e-6, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    warmup_steps: int = Field(default=10, ge=0)

    def lr_at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0: linear to `lr` over `warmup_steps`, then constant."""
        return self.lr * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.lr


class PolicyOptions(Options):
    """The model and how it is computed. `reference` defaults to `model`; it is loaded only if kl_beta > 0."""

    model: str
    reference: str | None = None
    dtype: Literal["bf16", "float32"] = "bf16"
    """bf16: autocast over float32 master weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    micro_batch_tokens: int = Field(default=2048, ge=1)
    logprob_chunk: int = Field(default=512, ge=1)
    threads: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False
    freeze_router: bool = True
    collective_seconds: float = Field(default=600.0, gt=0)
    seed: int = 0
    algorithm: AlgorithmOptions = AlgorithmOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
