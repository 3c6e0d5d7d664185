"""Options of every command that samples rollouts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Concurrency = Annotated[int, typer.Option(min=1, help="Rollouts in flight.")]
Retries = Annotated[int, typer.Option(min=0, help="Tries more of a phase that failed, before it is a failure.")]
MaxFailures = Annotated[float, typer.Option(help="Stop when more than this share of rollouts failed.")]
Temperature = Annotated[float, typer.Option(min=0.0)]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of one answer.")]
ModelName = Annotated[str | None, typer.Option(help="`model` of the requests, where the server wants it.")]
Engine = Annotated[
    list[str],
    typer.Option(
        help="key=value for a model server started here, such as threads=2, dtype=float32, max_model_len=4096."
    ),
]
Settings = Annotated[
    list[str], typer.Option("--set", help="NAME.key=value of an environment started here; may be repeated.")
]
NoProgressSeconds = Annotated[float, typer.Option(help="Stop when no rollout ends for so long.")]


def sampling_of(temperature: float, max_tokens: int, model_name: str | None) -> dict[str, Any]:
    """The fields that all requests of a command share."""
    named = {} if model_name is None else {"model": model_name}
    return {"temperature": temperature, "max_output_tokens": max_tokens, **named}
