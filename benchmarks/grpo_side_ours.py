"""Our side of grpo_step_vs_trl.py: generation with transformers where asked, then rl_trainer's step and its weight export."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from grpo_workload import GROUP, LR, reward, say, wait_for_turn

from rl_trainer.advantages import group_advantages
from rl_trainer.options import AlgorithmOptions, ImportanceOptions, OptimizerOptions, PolicyOptions
from rl_trainer.packing import ATTENTION, TrainSegment
from rl_trainer.policy import PolicyWorker


def sample(worker: PolicyWorker, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], list[list[float]]]:
    """`tokens` sampled ids for each prompt (of one length), with their log-probabilities."""
    worker.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        ids = torch.tensor(prompts)
        done = worker.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = done.sequences[:, ids.shape[1] :]
        columns = [logits.log_softmax(-1).gather(1, new[:, at, None])[:, 0] for at, logits in enumerate(done.logits)]
    worker.model.set_attn_implementation(ATTENTION)
    return new.tolist(), torch.stack(columns, 1).tolist()


def segments(rollouts: Sequence[dict[str, Any]]) -> list[TrainSegment]:
    """Training segments with advantages of every group (plain mean, as TRL's)."""
    made = []
    for start in range(0, len(rollouts), GROUP):
        group = rollouts[start : start + GROUP]
        advantages = group_advantages([r["reward"] for r in group], baseline="mean")
        for number, (r, advantage) in enumerate(zip(group, advantages, strict=True)):
            p, a = len(r["prompt"]), len(r["answer"])
            lp_gen = [0.0] * p + (r.get("lp_gen") or [0.0] * a)
            ids = r["prompt"] + r["answer"]
            made.append(TrainSegment(ids, [0] * p + [1] * a, lp_gen, advantage, "bench", f"{start + number}"))  # type: ignore[arg-type]
    return made


def main() -> None:
    """Arguments: one JSON object, see grpo_step_vs_trl.py."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    # Stored ids have no log-probabilities of a sampler: w is 1, as in TRL without vLLM.
    importance = ImportanceOptions(mode="mask" if given["generate"] else "none")
    options = PolicyOptions(
        model=given["model"],
        dtype="float32",
        device="cpu",
        threads=1,
        algorithm=AlgorithmOptions(baseline="mean", importance=importance),
        optimizer=OptimizerOptions(lr=LR, warmup_steps=0),
    )
    worker = PolicyWorker(0, 1, options)
    export = Path(given["model"]) / "export.safetensors"
    rollouts = given["rollouts"]
    say(ready=True)
    step = 0
    while wait_for_turn():
        began = time.process_time()
        if given["generate"]:
            answers, scores = sample(worker, [r["prompt"] for r in rollouts], given["generate"])
            rollouts = [
                {"prompt": r["prompt"], "answer": answer, "lp_gen": lp_gen, "reward": reward(answer)}
                for r, answer, lp_gen in zip(rollouts, answers, scores, strict=True)
            ]
        sampled = time.process_time()
        result = worker.train_step(segments(rollouts), step)
        trained = time.process_time()
        if given["generate"]:
            worker.export(export, "float32")
        ended = time.process_time()
        if step == 0 and not given["generate"]:
            grads = {name: p.grad for name, p in worker.model.named_parameters() if p.grad is not None}
            torch.save(grads, os.path.join(given["model"], "gradient-ours.pt"))
        step += 1
        say(
            cpu=ended - began,
            generate=sampled - began,
            train=trained - sampled,
            export=ended - trained,
            loss=result["loss"],
            grad_norm=result["grad_norm"],
        )


if __name__ == "__main__":
    main()
