"""TRL's side of grpo_step_vs_trl.py: GRPOTrainer, from the begin of a step to its end. Runs in TRL's own environment."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from grpo_workload import FILLER, GROUP, LR, reward, say, wait_for_turn
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Turns(TrainerCallback):  # type: ignore[misc]
    """Runs a step only when the driver asks for one, and times it."""

    def __init__(self, gradient_path: str | None) -> None:
        self.gradient_path = gradient_path
        self.began = self.cpu = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        say(ready=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not wait_for_turn():
            os._exit(0)
        self.began = time.process_time()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.gradient_path is not None:
            waited = time.process_time()
            torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, self.gradient_path)
            self.gradient_path = None
            self.began += time.process_time() - waited

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.cpu = time.process_time() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "grad_norm" in logs:
            say(cpu=self.cpu, loss=float(logs["loss"]), grad_norm=float(logs["grad_norm"]))


def main() -> None:
    """Arguments: one JSON object, see grpo_step_vs_trl.py."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rollouts, tokens = given["rollouts"], given["generate"]

    def stored(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's hook for an own rollout: the stored ids."""
        return {
            "prompt_ids": [r["prompt"] for r in rollouts],
            "completion_ids": [r["answer"] for r in rollouts],
            "logprobs": [[0.0] * len(r["answer"]) for r in rollouts],
        }

    def rewards(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids] if tokens else [r["reward"] for r in rollouts]

    accumulation = max(1, len(rollouts) // given["batch"])
    config = GRPOConfig(
        output_dir=os.path.join(given["model"], "trl"),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=given["checkpointing"],
        per_device_train_batch_size=given["batch"],
        gradient_accumulation_steps=accumulation,
        num_generations=GROUP,
        max_completion_length=tokens or 256,
        generation_kwargs={"min_new_tokens": tokens} if tokens else None,
        temperature=1.0,
        loss_type="dapo",  # the token mean over the batch, as ours
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=1000,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    text = FILLER * len(rollouts[0]["prompt"])
    trainer = GRPOTrainer(
        model=given["model"],
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text}] * 1000),
        callbacks=[Turns(None if tokens else os.path.join(given["model"], "gradient-trl.pt"))],
        rollout_func=None if tokens else stored,
    )
    trainer.train()


if __name__ == "__main__":
    main()
