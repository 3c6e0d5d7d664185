"""The run's configuration: one pydantic tree from a YAML file and `a.b=c` overrides.

Unknown keys are errors that name the nearest right key; a wrong type is named with its whole path. The resolved tree is
written into the run folder, and a resumed run reads it from there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from curriculum.mixture import MixtureError, shares
from curriculum.options import CurriculumConfig
from gym_servers.hosts.servers import HostKind
from gym_servers.protocol import OmnigymError
from gym_servers.registry import add_folder, load_environment
from rl_trainer.options import AlgorithmOptions, OptimizerOptions, Options, PolicyOptions


class ConfigError(OmnigymError):
    """A configuration that cannot be used: says which key of which file, and what would be right."""


class TasksConfig(Options):
    """Training tasks of one environment: rows of `file`, else `n` generated ones from `seed`. Held-out ones likewise, as `val` says."""

    file: Path | None = None
    heldout: Path | None = None
    """Held-out tasks, of which the first `val.tasks` are used."""
    n: int = Field(default=512, ge=1)
    seed: int = 0
    max_difficulty: float = Field(default=1.0, ge=0, le=1)
    """Generated tasks above it are left out, in training and held-out alike."""


class SamplingConfig(Options):
    """How the policy is sampled. top-p is always 1: log-probabilities after a cut cannot be compared (pitfall 10)."""

    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=96, ge=1)


class EngineConfig(Options):
    """The vLLM model server. It only generates while the trainer waits, so both may use every core."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    threads: int = Field(default=2, ge=1)
    kv_gib: int = Field(default=1, ge=1)
    max_model_len: int = Field(default=1024, ge=16)
    start_seconds: float = Field(default=180.0, gt=0)


class PolicyConfig(Options):
    """How the policy worker computes; its model, algorithm and optimiser stand elsewhere in the tree."""

    dtype: Literal["bf16", "float32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=2, ge=1)
    micro_batch_tokens: int = Field(default=2048, ge=1)
    logprob_chunk: int = Field(default=512, ge=1)
    gradient_checkpointing: bool = False
    freeze_router: bool = True
    reference: str | None = None
    step_seconds: float = Field(default=1800.0, gt=0)
    """Deadline of one call to the workers (load, step, export, checkpoint)."""


class ValidationConfig(Options):
    """Held-out tasks: `tasks` per environment, generated with `seed`, `samples` rollouts of each."""

    every: int = Field(default=0, ge=0)
    """A smaller evaluation every so many steps; 0: only before and after."""
    tasks: int = Field(default=40, ge=0)
    """0: no evaluation at all."""
    samples: int = Field(default=4, ge=1)
    seed: int = 1000
    every_samples: int = Field(default=1, ge=1)
    """Samples of a task in the evaluations between the first and the last."""


class DynamicSamplingConfig(Options):
    """Groups whose rewards are all equal, which teach nothing, are replaced by others (DAPO, arXiv 2503.14476)."""

    max_attempts: int = Field(default=0, ge=0)
    """So many groups at most are sampled in place of one, in each step; 0: none is replaced."""


class CheckpointConfig(Options):
    """Checkpoints by number of completed steps; the last step is always one. keep_last 0 keeps all; the best stays."""

    every: int = Field(default=5, ge=1)
    keep_last: int = Field(default=2, ge=0)


class RayConfig(Options):
    """The local Ray that a run starts. `address` (or RAY_ADDRESS) joins one that is there. enabled false: no Ray."""

    enabled: bool = True
    address: str | None = None
    num_cpus: int = Field(default=4, ge=1)
    object_store_mb: int = Field(default=100, ge=80)


class PlacementConfig(Options):
    """Where the environments run that `environment_urls` does not name: processes of this machine, an actor of the Ray cluster, a
    container of this machine, or a server at `url` that has them all, such as the gateway of compose/."""

    environments: HostKind = "local"
    url: str | None = None
    """Its token is OMNIGYM_ENVIRONMENTS_TOKEN, or in the file that OMNIGYM_ENVIRONMENTS_TOKEN_FILE names."""
    restarts: int = Field(default=3, ge=0)
    """How often in a run a server that dies is started again; its next death ends the run."""
    image: str | None = None
    """Of the container; without one what `docker compose build` makes."""
    network: str | None = None
    """Of the engine, which the container joins, so that it can reach a judge; without one it has no way out."""
    memory_mb: int | None = Field(default=None, ge=256)
    """Limit of the container; 2048 without one."""

    @model_validator(mode="after")
    def _one_host(self) -> PlacementConfig:
        for key, host in (("url", "url"), ("image", "docker"), ("network", "docker"), ("memory_mb", "docker")):
            if getattr(self, key) is not None and self.environments != host:
                raise ValueError(
                    f"placement.{key} is for placement.environments: {host}, which is {self.environments}; change one"
                )
        if self.environments == "url":
            if self.url is None or not self.url.startswith(("http://", "https://")):
                raise ValueError(
                    f"placement.url '{self.url or ''}' must begin with http:// or https:// "
                    "(placement.environments is url)"
                )
            if "@" in self.url:
                raise ValueError(
                    "placement.url must hold no user or password: set OMNIGYM_ENVIRONMENTS_TOKEN, or "
                    "OMNIGYM_ENVIRONMENTS_TOKEN_FILE, to the server's token"
                )
        return self


class RunConfig(Options):
    """Everything a run does."""

    name: str = "run"
    runs_folder: Path = Path("runs")
    seed: int = 0
    model: str
    steps: int = Field(ge=1)
    tasks_per_step: int = Field(default=6, ge=1)
    group_size: int = Field(default=8, ge=1)
    mixture: dict[str, float]
    tasks: dict[str, TasksConfig] = {}
    settings: dict[str, dict[str, Any]] = {}
    """Settings of environments, on top of their environment.yaml."""
    environment_paths: list[Path] = []
    """Folders of environments that are not installed, as `--path` of other commands."""
    environment_urls: dict[str, str] = {}
    """Environments that another server serves, such as one of NeMo-Gym's: each has its tasks in tasks.NAME.file."""
    placement: PlacementConfig = PlacementConfig()
    sampler: Literal["gaussian", "random", "sequential"] = "random"
    curriculum: CurriculumConfig = CurriculumConfig()
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    sampling: SamplingConfig = SamplingConfig()
    algorithm: AlgorithmOptions = AlgorithmOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    policy: PolicyConfig = PolicyConfig()
    engine: EngineConfig = EngineConfig()
    val: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    failure_limit: float = Field(default=0.05, ge=0, le=1)
    failure_retries: int = Field(default=2, ge=0)
    concurrency: int = Field(default=64, ge=1)
    no_progress_seconds: float = Field(default=300.0, gt=0)
    canary_factor: float = Field(default=1.5, gt=1)
    wandb: bool = False
    ray: RayConfig = RayConfig()

    @field_validator("environment_paths")
    @classmethod
    def _absolute(cls, folders: list[Path]) -> list[Path]:
        return [folder.resolve() for folder in folders]  # a resumed run may be started elsewhere

    @field_validator("curriculum")
    @classmethod
    def _absolute_profile(cls, curriculum: CurriculumConfig) -> CurriculumConfig:
        if curriculum.profile is None:
            return curriculum
        return curriculum.model_copy(update={"profile": curriculum.profile.resolve()})

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name '{self.name}' must be letters, digits, '.', '_' and '-'")
        self.algorithm.check_group_size(self.group_size)
        try:
            shares(self.mixture)
        except MixtureError as error:
            raise ValueError(str(error)) from None
        if self.sampler == "gaussian" and self.curriculum.profile is None:
            raise ValueError(
                "sampler 'gaussian' needs curriculum.profile, a file that `omnigym profile --config` makes of this configuration"
            )
        if self.curriculum.replan.patience and not (self.val.every and self.val.tasks):
            raise ValueError("curriculum.replan.patience counts validations: set val.every and val.tasks too")
        for key, named in (
            ("tasks", set(self.tasks)),
            ("settings", set(self.settings)),
            ("environment_urls", set(self.environment_urls)),
        ):
            extra = sorted(named - set(self.mixture))
            if extra:
                raise ValueError(f"{key} names {extra}, which the mixture does not: {sorted(self.mixture)}")
        for folder in self.environment_paths:
            try:
                add_folder(folder)
            except OmnigymError as error:
                raise ValueError(f"environment_paths: {error}") from None
        for name, url in self.environment_urls.items():
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"environment_urls.{name} '{url}' must begin with http:// or https://")
            if name not in self.tasks or self.tasks[name].file is None:
                raise ValueError(
                    f"environment_urls.{name}: set tasks.{name}.file, a server elsewhere generates no tasks"
                )
            if name in self.settings:
                raise ValueError(f"settings.{name}: its server, environment_urls.{name}, has settings of its own")
        placed = self.placement.environments
        if placed == "url" and self.settings:
            raise ValueError(
                f"settings.{next(iter(self.settings))}: the server at placement.url has settings of its own; leave it out"
            )
        if placed == "ray" and not self.ray.enabled:
            raise ValueError("placement.environments: ray needs ray.enabled: true")
        for name, values in self.settings.items():
            try:
                load_environment(name, values)
            except OmnigymError as error:
                raise ValueError(f"settings: {error}") from None
        if "temperature" in self.algorithm.model_fields_set and (
            self.algorithm.temperature != self.sampling.temperature
        ):
            raise ValueError(
                f"algorithm.temperature ({self.algorithm.temperature}) differs from sampling.temperature "
                f"({self.sampling.temperature}): leave the first out"
            )
        if self.policy.workers > 1 and not self.ray.enabled:
            raise ValueError(f"policy.workers ({self.policy.workers}) above 1 needs ray.enabled=true")
        if self.sampling.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"sampling.max_tokens ({self.sampling.max_tokens}) leaves no room for a prompt in "
                f"engine.max_model_len ({self.engine.max_model_len})"
            )
        return self

    @property
    def environments(self) -> list[str]:
        """Environments with a share in the mixture, in the configuration's order."""
        return [name for name, ratio in self.mixture.items() if ratio > 0]

    @property
    def local_environments(self) -> list[str]:
        """Those of `environments` that are where `placement` says: our own, whose tasks can be generated."""
        return [name for name in self.environments if name not in self.environment_urls]

    @property
    def prompt_limit(self) -> int:
        """Longest prompt, in tokens, that leaves room for a whole answer."""
        return self.engine.max_model_len - self.sampling.max_tokens

    def policy_options(self, model: Path, reference: Path | None) -> PolicyOptions:
        """What the policy worker takes. The trainer's temperature is the sampler's (pitfall 9)."""
        chosen = self.policy.model_dump(exclude={"workers", "reference", "step_seconds"})
        return PolicyOptions(
            model=str(model),
            reference=None if reference is None else str(reference),
            seed=self.seed,
            algorithm=self.algorithm.model_copy(update={"temperature": self.sampling.temperature}),
            optimizer=self.optimizer,
            collective_seconds=self.policy.step_seconds,
            **chosen,
        )

    def to_yaml(self) -> str:
        """The resolved tree; reading it back gives an equal one."""
        data = self.model_dump(mode="json")
        data["algorithm"].pop("temperature")  # it is sampling.temperature
        return yaml.safe_dump(data, sort_keys=False)


ANY_NAME = "NAME"
"""Stands for a key that the user chooses."""


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all keys of a tree, inner nodes too."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner, path = field.annotation, f"{prefix}{name}."
        if get_origin(inner) is dict:
            inner, path = get_args(inner)[1], f"{path}{ANY_NAME}."
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from known_keys(inner, path)


def nearest_key(key: str) -> str | None:
    """The known key that `key` most likely stands for: by its whole path, else by its last part."""
    parts = key.split(".")
    known = []
    for path in known_keys(RunConfig):
        names = path.split(".")
        if ANY_NAME in names and len(parts) > (at := names.index(ANY_NAME)):
            names[at] = parts[at]
        known.append(".".join(names))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    last = key.rsplit(".", 1)[-1]
    by_last = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
    found = difflib.get_close_matches(last, list(by_last), n=1)
    return by_last[found[0]] if found else None


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = nearest_key(key)
            lines.append(f"unknown key '{key}'" + (f"; did you mean '{near}'?" if near else ""))
        elif problem["type"] == "missing":
            lines.append(f"key '{key}' is required and absent")
        elif not key:
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"key '{key}': {problem['msg'].removeprefix('Value error, ')}, found {problem['input']!r}")
    return f"{source}: " + "; ".join(lines)


def apply_override(tree: dict[str, Any], pair: str) -> None:
    """Set `a.b=c` in `tree`; c is read as YAML."""
    key, equals, text = pair.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override '{pair}': must be key=value, such as optimizer.lr=1e-5")
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{pair}': '{part}' is {child!r}, it has no keys inside")
        node = child
    try:
        node[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{pair}': the value is not YAML: {error}") from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path` with `overrides` on top. Raises ConfigError."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        raise ConfigError(f"no configuration file '{path}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    for pair in overrides:
        apply_override(tree, pair)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path))) from None
