"""Every instruction by its id: IFEval's 25, the 29 of the extended training set beside them, IFBench's 58."""

from __future__ import annotations

import difflib

from environments.instruction_following import (
    checks_extended,
    checks_ifbench_forms,
    checks_ifbench_words,
    checks_ifeval,
)
from environments.instruction_following.kwargs import Instruction

INSTRUCTIONS: dict[str, Instruction] = {
    **checks_ifeval.CHECKS,
    **checks_extended.CHECKS,
    **checks_ifbench_words.CHECKS,
    **checks_ifbench_forms.CHECKS,
}


def instruction(identifier: str) -> Instruction:
    """The instruction of that id. Raises ValueError that names the nearest right one."""
    try:
        return INSTRUCTIONS[identifier]
    except KeyError:
        near = difflib.get_close_matches(identifier[:100], INSTRUCTIONS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown instruction '{identifier[:100]}'{hint}") from None
