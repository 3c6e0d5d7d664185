"""Competition mathematics: a final answer in `\\boxed{}`, compared with the expected answer as mathematics."""
