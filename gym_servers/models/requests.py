"""What a request may ask of sampling, and what it may not. Errors are OmnigymError and name the field."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gym_servers.protocol import Item, OmnigymError

OFF = {
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
}
"""Values that change nothing, of fields that are not served."""
OFF_FOR_POLICY = {"top_p": (None, 1, 1.0), "top_k": (None, 0, -1)}


@dataclass(frozen=True)
class Switches:
    """reasoning: None for a model without. budget: most tokens of reasoning in a turn."""

    reasoning: bool | None
    budget: int | None


def number(body: Item, name: str, default: float, least: float) -> float:
    """Field `name` as a finite number of at least `least`; `default` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise OmnigymError(f"field '{name}': must be a number of at least {least:g}, found {str(value)[:80]!r}")
    return value


def switches(body: Item, default: Switches) -> Switches:
    """`chat_template_kwargs` over the server's own settings."""
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict) or set(given) - {"reasoning", "reasoning_budget"}:
        raise OmnigymError(
            f"field 'chat_template_kwargs': takes 'reasoning' and 'reasoning_budget', found {str(given)[:80]}"
        )
    reasoning = given.get("reasoning", default.reasoning)
    if reasoning is not None and not isinstance(reasoning, bool):
        raise OmnigymError(f"field 'chat_template_kwargs.reasoning': must be true, false or null, found {reasoning!r}")
    budget = given.get("reasoning_budget", default.budget)
    if budget is not None and (type(budget) is not int or budget < 1):
        raise OmnigymError(f"field 'chat_template_kwargs.reasoning_budget': must be at least 1 token, found {budget!r}")
    return Switches(reasoning, budget)


def check_sampling(body: Item, policy: bool) -> None:
    """Raises OmnigymError on what is not served, and on what would make the policy's log-probabilities another model's."""
    if body.get("n") not in (None, 1):
        raise OmnigymError("field 'n': one answer per request; send several requests")
    if body.get("stream"):
        raise OmnigymError("field 'stream': streaming is not served")
    for name, neutral in OFF.items():
        if body.get(name) not in neutral:
            raise OmnigymError(f"field '{name}': is not served, leave it out")
    if not policy:
        return
    if body.get("stop"):
        raise OmnigymError(
            "field 'stop': stop strings cut tokens that were sampled, and the policy is trained on all of them"
        )
    for name, neutral in OFF_FOR_POLICY.items():
        if body.get(name) not in neutral:
            raise OmnigymError(f"field '{name}': must be off for the policy, whose trainer computes a full softmax")
    if body.get("temperature") is not None and number(body, "temperature", 1.0, 0.0) == 0:
        raise OmnigymError("field 'temperature': must be above 0 for the policy")
