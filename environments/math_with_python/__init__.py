"""Competition mathematics with a Python tool: the answer may be computed, and is graded as in competition_math."""
