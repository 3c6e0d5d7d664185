"""Runs in the sandbox, beside the answer as solution.py: calls its function with the arguments on standard input, one JSON value a line,
and prints what it returned as JSON. Standard output is kept for that: what the answer itself prints goes to standard error.

The server adds the line that calls `main`. It knows no expected value. An answer that takes over this process can only print a result, which is what it was asked for.
As on the sites that such tasks come from, names of typing and of common modules are there without an import.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys

PROVIDED = ("typing", "collections", "heapq", "itertools", "functools", "bisect", "math")
"""Their public names, the first module's first; a name that Python itself has is never replaced."""
MODULES = (*PROVIDED, "string", "re", "random")


def main(function_name: str) -> None:
    """Call `function_name` of solution.py, or the method of its class Solution."""
    sys.set_int_max_str_digits(0)
    arguments = [json.loads(line) for line in sys.stdin.read().split("\n") if line.strip()]
    results = os.dup(1)
    os.dup2(2, 1)
    for name in MODULES:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", dir(module)) if name in PROVIDED else ()
        for provided in {name: module} | {key: getattr(module, key) for key in names if not key.startswith("_")}:
            if not hasattr(builtins, provided):
                setattr(builtins, provided, module if provided == name else getattr(module, provided))
    sys.path.insert(0, os.getcwd())
    solution = importlib.import_module("solution")
    of_class = hasattr(getattr(solution, "Solution", None), function_name)
    returned = getattr(solution.Solution() if of_class else solution, function_name)(*arguments)
    sys.stdout.flush()
    with open(results, "w") as channel:
        channel.write(json.dumps(returned))
