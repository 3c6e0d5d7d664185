"""TRL 1.16.0's GRPOTrainer beside ours, on a random Llama of SmolLM2-135M's shape (134.5M parameters), float32, one thread.

TRL lives in an environment of its own on top of the project's (it is no dependency of ours):

    python3.11 -m venv /tmp/trl
    echo "$PWD/.venv/lib/python3.11/site-packages" > /tmp/trl/lib/python3.11/site-packages/project.pth
    /tmp/trl/bin/pip install --no-deps trl==1.16.0 datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 \\
        multiprocess==0.70.19 xxhash python-dateutil
    .venv/bin/python benchmarks/grpo_step_vs_trl.py --trl-python /tmp/trl/bin/python

Two comparisons, each side a process of its own, taking turns; a step's figure is the CPU time of its process.

step: 8 rollouts of 64 prompt and 32 answer tokens, everything from prompts to new weights. Both generate with transformers'
`generate` on the weights being trained (TRL's way where there is no vLLM), so that the engines do not decide. Ours also takes the
sampled tokens' log-probabilities, corrects by importance, and writes and digests the weights for an engine; TRL does none
of that. Target: ours no slower.

train: the training part on the same stored ids, rewards given: prompts of 64 tokens, answers of lognormal length (median
--median, sigma --sigma, cap 256), from ids to the optimiser's step. TRL gets them through its `rollout_func`, with
micro-batches of 8 sequences, and takes no pass for old log-probabilities. Losses and clipped gradients of the first step are compared: the
objective is the same (token mean, group mean and standard deviation, clip 0.2/0.28, no importance weights). Target: ours at least
twice as fast.

Gradient checkpointing, TRL's default, is off, since it costs time and memory is not short here (--checkpointing leaves it on).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from grpo_workload import FILLER_ID, make_model, stored_rollouts
from measure import show

HERE = Path(__file__).resolve().parent
LOSS_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-3


class Side:
    """One of the two processes."""

    def __init__(self, python: str, script: str, given: dict[str, Any]) -> None:
        self.name = script
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        }
        self.log = tempfile.NamedTemporaryFile("w+", prefix=script)
        self.process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.read()

    def read(self) -> dict[str, Any]:
        """Its next JSON line. Raises RuntimeError with the end of its log where it ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{") and line.rstrip().endswith("}"):
                try:
                    value: dict[str, Any] = json.loads(line)
                    return value
                except json.JSONDecodeError:
                    continue  # a line that the trainer prints
        self.log.seek(0)
        raise RuntimeError(f"{self.name} ended: {self.log.read()[-3000:]}")

    def step(self) -> dict[str, Any]:
        """Run one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def gradient_difference(folder: Path) -> float:
    """|ours - theirs| / |theirs| over all parameters. Raises RuntimeError where their names differ."""
    ours, theirs = (torch.load(folder / f"gradient-{side}.pt") for side in ("ours", "trl"))
    if set(ours) != set(theirs):
        raise RuntimeError(f"parameters differ: {sorted(set(ours) ^ set(theirs))[:4]}")
    difference = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return float((difference / sum(float(value.double().square().sum()) for value in theirs.values())) ** 0.5)


def compare(options: argparse.Namespace, given: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Steps of ours and of TRL, taken in turns; the first of each is a warm-up (and the one that is checked)."""
    ours = Side(sys.executable, "grpo_side_ours.py", given)
    theirs = Side(options.trl_python, "grpo_side_trl.py", given)
    try:
        turns = [(ours.step(), theirs.step()) for _ in range(options.repeats + 1)]
    finally:
        ours.close()
        theirs.close()
    for at, (mine, trl) in enumerate(turns):
        print(f"turn {at}: ours {mine}, TRL {trl}", file=sys.stderr)
    return [turn[0] for turn in turns], [turn[1] for turn in turns]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="python of the environment that has TRL")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=16, help="of the comparison `train`, a multiple of 8")
    parser.add_argument("--median", type=int, default=64, help="median answer length")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of the length")
    parser.add_argument("--cap", type=int, default=256)
    parser.add_argument("--answer", type=int, default=32, help="answer tokens of the comparison `step`")
    parser.add_argument("--only", choices=("step", "train"))
    parser.add_argument("--checkpointing", action="store_true", help="leave TRL's gradient checkpointing on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.rollouts % 8:
        parser.error("--rollouts must be a multiple of 8")
    torch.set_num_threads(1)
    rows: list[list[Any]] = []
    result: dict[str, Any] = {"benchmark": "grpo_step_vs_trl", "repeats": options.repeats, "seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="omnigym-bench-", dir=os.environ.get("TMPDIR", "/tmp")) as name:
        folder = Path(name)
        result["parameters"] = make_model(folder, options.seed)
        common = {"model": name, "batch": 8, "checkpointing": options.checkpointing}
        for kind in ("step", "train"):
            if options.only not in (None, kind):
                continue
            if kind == "step":
                rollouts = [{**r, "prompt": [FILLER_ID] * 64} for r in stored_rollouts(8, 64, 1, 0.0, 1, options.seed)]
            else:
                rollouts = stored_rollouts(
                    options.rollouts, 64, options.median, options.sigma, options.cap, options.seed
                )
            given = {**common, "rollouts": rollouts, "generate": options.answer if kind == "step" else 0}
            ours, theirs = compare(options, given)
            mine, trl = (statistics.median(turn["cpu"] for turn in side[1:]) for side in (ours, theirs))
            ratio = statistics.median(t["cpu"] / o["cpu"] for o, t in zip(ours[1:], theirs[1:], strict=True))
            rows.append([kind, mine, trl, ratio, 1.0 if kind == "step" else 2.0])
            result[kind] = {"ours_s": mine, "trl_s": trl, "ratio": ratio}
            if kind == "step":
                parts = {
                    part: statistics.median(turn[part] for turn in ours[1:]) for part in ("generate", "train", "export")
                }
                result[kind] |= {f"ours_{part}_s": value for part, value in parts.items()}
                continue
            lengths = [len(r["answer"]) for r in rollouts]
            difference, losses = gradient_difference(folder), (ours[0]["loss"], theirs[0]["loss"])
            result[kind] |= {"lengths": lengths, "gradient_difference": difference, "losses": losses}
            if difference > GRADIENT_TOLERANCE or abs(losses[0] - losses[1]) > LOSS_TOLERANCE:
                raise RuntimeError(
                    f"the sides do not compute the same: gradients differ by {difference}, losses {losses}"
                )
    show(("CPU-s", "ours", "TRL", "TRL / ours", "target"), rows, result)


if __name__ == "__main__":
    main()
