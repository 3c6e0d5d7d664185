"""The records that travel between servers, collector and trainer.

Wire formats are NeMo-Gym's and only gain fields: unknown fields are kept on every record that may come from outside.
Responses items (messages, function calls, reasoning) stay plain JSON objects in the OpenAI Responses form.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

Item = dict[str, Any]
"""One OpenAI Responses input or output item."""

FailureKind = Literal[
    "timeout",
    "tool_crash",
    "verifier_crash",
    "judge_failed",
    "simulator_failed",
    "model_error",
    "bad_row",
    "connection",
    "version_straddled",
    "environment_down",
    "cancelled",
]


class Failure(BaseModel):
    """An infrastructure failure. It is never a reward: a failed rollout leaves its group and is counted."""

    kind: FailureKind
    message: str
    retryable: bool = True


class OmnigymError(Exception):
    """Base of errors that are shown to a user: the message says what was wrong, where, and what to do."""


class RowError(OmnigymError):
    """A task row that an environment cannot use. Names the environment, the task and the field."""


class FailureError(OmnigymError):
    """Carries a `Failure` through Python code; servers turn it into 503 `{error, retryable}`. status: HTTP's, where one came."""

    def __init__(self, failure: Failure, status: int | None = None) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure
        self.status = status


class Verdict(BaseModel):
    """What a verifier decided.

    reward: finite, in the environment's range (default [0, 1]).
    explanation: one sentence for a person who wonders why.
    parts: named components (numbers, booleans, lists, strings) that end up in the metrics and the rollout viewer.
    """

    reward: float
    explanation: str
    parts: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _finite(self) -> Verdict:
        if not math.isfinite(self.reward):
            raise ValueError(f"reward must be finite, got {self.reward}")
        return self


class AgentRef(BaseModel):
    """NeMo-Gym's `agent_ref`: which agent (and so which environment) a row belongs to."""

    model_config = ConfigDict(extra="allow")
    type: str = "responses_api_agents"
    name: str


class Task(BaseModel):
    """One JSONL row. The environment's own fields stand beside these and are kept (`model_extra`)."""

    model_config = ConfigDict(extra="allow")
    responses_create_params: dict[str, Any]
    agent_ref: AgentRef | None = None
    task_id: str | None = None

    def row(self) -> dict[str, Any]:
        """The row as it was read, without fields that were absent."""
        return self.model_dump(exclude_unset=True)


def row_task_id(row: dict[str, Any], occurrence: int = 0) -> str:
    """Id of a row that has none: hash of the row plus its occurrence number, so that identical rows do not merge."""
    body = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return f"{hashlib.sha256(body.encode()).hexdigest()[:16]}-{occurrence}"


class Segment(BaseModel):
    """A contiguous token sequence of a rollout.

    token_ids: int, shape [T]; prompt and sampled tokens in order.
    mask: shape [T]; 1 exactly where the token was sampled in this segment.
    lp_gen: shape [T]; natural-log probability under the sampling distribution where mask is 1, 0.0 elsewhere.
    weight_version: the one version of the policy's weights that sampled every masked token of this segment.
    break_reason: why this segment does not extend the previous one ("" for the first).
    """

    token_ids: list[int]
    mask: list[int]
    lp_gen: list[float]
    weight_version: int = 0
    break_reason: str = ""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Segment:
        if not len(self.token_ids) == len(self.mask) == len(self.lp_gen):
            raise ValueError(
                f"segment arrays differ in length: {len(self.token_ids)} ids, {len(self.mask)} mask, {len(self.lp_gen)} lp_gen"
            )
        return self

    @property
    def sampled(self) -> int:
        """Number of tokens that this segment sampled."""
        return sum(self.mask)


class ToolCall(BaseModel):
    """One tool call of a rollout and what came back."""

    name: str
    arguments: dict[str, Any] | str
    output: str
    error: bool = False
    seconds: float = 0.0


class Rollout(BaseModel):
    """Everything that happened in one episode. Either `reward` is a number or `failure` says why there is none;
    both are None only while a group reward is awaited.
    """

    model_config = ConfigDict(extra="allow")
    task_id: str
    environment: str
    group: str = ""
    attempt: int = 0
    seed: int = 0
    task: dict[str, Any] = Field(default_factory=dict)
    output: list[Item] = Field(default_factory=list)
    segments: list[Segment] = Field(default_factory=list)
    tool_calls: list[ToolCall] = Field(default_factory=list)
    reward: float | None = None
    parts: dict[str, Any] = Field(default_factory=dict)
    explanation: str = ""
    group_size: int = 0
    """How many rollouts its group verdict was on, itself included; 0 where it is graded alone."""
    failure: Failure | None = None
    truncated: bool = False
    truncation_reason: Literal["", "max_tokens", "context"] = ""
    steps: int = 0
    usage: dict[str, int] = Field(default_factory=dict)
    """Engine's own counts, retried and abandoned calls included: prompt_tokens, sampled_tokens, requests. dropped_tokens: those
    sampled that are in no segment."""
    timings: dict[str, float] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """The final assistant message's text, reasoning excluded."""
        return final_text(self.output)


def final_text(output: list[Item]) -> str:
    """Text of the last assistant message in `output`; "" where there is none, or none that is text. Reasoning items are never read."""
    for item in reversed(output):
        if item.get("type", "message") == "message" and item.get("role", "assistant") == "assistant":
            content = item.get("content")
            if isinstance(content, str):
                return content
            parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
            texts = [part.get("text") for part in parts if part.get("type") == "output_text"]
            return "".join(text for text in texts if isinstance(text, str))
    return ""


def strip_reasoning(text: str) -> str:
    """Remove `<think>...</think>` that leaked into a message; unbalanced: the text after the last closing tag.

    An opening tag that is never closed leaves nothing after it: what follows is reasoning.
    """
    if "</think>" in text:
        text = text.rsplit("</think>", 1)[1].lstrip()
    if "<think>" in text:
        text = text.split("<think>", 1)[0]
    return text


def call_arguments(call: Item) -> dict[str, Any] | None:
    """The arguments of a function call; None where they are no JSON object."""
    raw = call.get("arguments") or "{}"
    try:
        arguments = orjson.loads(raw) if isinstance(raw, str) else None
    except orjson.JSONDecodeError:
        return None
    return arguments if isinstance(arguments, dict) else None


def function_calls(output: list[Item]) -> list[Item]:
    """The function_call items of `output`, in order."""
    return [item for item in output if item.get("type") == "function_call"]
