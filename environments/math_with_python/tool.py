"""What the Python tool accepts, and what the model sees of a run. Pure and linear."""

from __future__ import annotations

from gym_servers.sandbox.pool import Run
from gym_servers.tools import ToolRefused

ERROR_LINES = 8
"""Of standard error, its last lines."""
ENDINGS = {
    "timed_out": "[The program was stopped: it took too much time.]",
    "memory": "[The program was stopped: it took too much memory.]",
    "output": "[The program was stopped: it printed too much.]",
    "killed": "[The program was ended by a signal.]",
}


def check_code(code: str) -> None:
    """Raises ToolRefused where `code` cannot be run."""
    if not code.strip():
        raise ToolRefused("the code is blank")
    try:
        code.encode()
    except UnicodeEncodeError:
        raise ToolRefused("the code holds a lone surrogate, which is no text") from None


def cut(text: str, chars: int) -> str:
    """The beginning and the end of `text`, which is what one sees of an output, where all of it is too long."""
    if len(text) <= chars:
        return text
    half = chars // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def as_output(run: Run, chars: int) -> str:
    """Standard output, the last lines of standard error, and how the program ended where it did not end well."""
    printed = cut(run.stdout.decode("utf-8", "backslashreplace"), chars)
    errors = run.stderr.decode("utf-8", "backslashreplace").strip().split("\n")
    ending = ENDINGS.get(run.status, "")
    if not ending and run.exit_code:
        ending = f"[The program ended with exit code {run.exit_code}.]"
    parts = [printed.rstrip("\n"), cut("\n".join(errors[-ERROR_LINES:]), chars), ending]
    return "\n".join(part for part in parts if part) or "[The program printed nothing.]"
