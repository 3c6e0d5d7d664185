"""`omnigym model serve`: a checkpoint as a model server over vLLM, such as a judge, in one command."""

from __future__ import annotations

import json
import os
import secrets
import sys
from typing import Annotated

import typer

from gym_servers.checkpoints import resolve_model
from gym_servers.commands.collection import engine_settings
from gym_servers.commands.serve import token_for
from gym_servers.variables import variable, with_variables


def serve_model(
    name: Annotated[str, typer.Argument(help="A name got by `model get`, or a checkpoint folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one and prints it.")] = 8200,
    auth: Annotated[str, typer.Option(help="token (from OMNIGYM_TOKEN, else a new one is printed) or none.")] = "token",
    engine: Annotated[
        list[str],
        typer.Option(
            help="key=value of the engine, such as threads=2, dtype=float32, max_model_len=4096; may be repeated."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Serve a model over vLLM, for a judge, a simulated user or an evaluation, until interrupted.

    As a judge: `--set ENV.judge_url=http://HOST:PORT/v1/chat/completions --set ENV.judge_model=NAME --set
    ENV.judge_token_variable=OMNIGYM_TOKEN` of `omnigym env serve`, `rollout` and `eval` (`settings.ENV.judge_url` in a training run).
    """
    settings = {
        "max_num_seqs": 32,
        **engine_settings(engine),
        "model": str(resolve_model(name)),
        "host": host,
        "port": port,
    }
    token = token_for(auth, host)
    signing = variable("OMNIGYM_SECRET") or secrets.token_urlsafe(24)  # of rollout ids, of which a judge has none
    given = {
        "OMNIGYM_SECRET": signing,
        "OMNIGYM_TOKEN": token or "",
        "OMP_NUM_THREADS": str(settings.get("threads", 2)),
    }
    # The server takes this process's place: signals, its end and its output are its own.
    os.execve(
        sys.executable,
        [sys.executable, "-m", "gym_servers.models.vllm", "--settings", json.dumps(settings)],
        with_variables(given),
    )
