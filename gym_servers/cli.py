"""The command `omnigym`. Subcommands come from entry points of the group `omnigym.commands`, each a
`register(app: typer.Typer) -> None`, so that an environment container needs no trainer.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer
from rich.console import Console
from rich.markup import escape

from gym_servers.commands import agent as agent_command
from gym_servers.commands import eval as eval_command
from gym_servers.commands import gateway as gateway_command
from gym_servers.commands import rollout as rollout_command
from gym_servers.protocol import OmnigymError

GROUP = "omnigym.commands"
EXTRAS = {
    "docker": "docker",
    "pyarrow": "curriculum",
    "ray": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "tokenizers": "train",
    "torch": "train",
    "transformers": "train",
    "vllm": "vllm",
}
"""The extra that installs a package which the base install lacks."""


def build() -> typer.Typer:
    """The whole command. A group of commands whose packages are not installed is left out; its name tells how to get it."""
    app = typer.Typer(
        name="omnigym",
        help="Post-train a language model with reinforcement learning on many environments at once.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    agent_command.register(app)
    eval_command.register(app)
    gateway_command.register(app)
    rollout_command.register(app)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            register = point.load()
        except ModuleNotFoundError as error:

            def absent(error: ModuleNotFoundError = error) -> None:
                raise error

            app.command(point.name, help=f"(not installed: needs '{error.name}')")(absent)
        else:
            register(app)
    return app


def main() -> None:
    """Entry point. An OmnigymError, or a package that is not installed, is one line on stderr and exit status 1; anything else is a bug
    and shows its traceback."""
    try:
        build()()
    except OmnigymError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        message = f"this command needs the package '{package}': pip install 'omnigym[{EXTRAS[package]}]'"
    else:
        return
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    sys.exit(1)
