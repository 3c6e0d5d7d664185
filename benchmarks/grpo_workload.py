"""What both sides of grpo_step_vs_trl.py share: the model, the stored rollouts, the reward, and how a side is driven.

A side is a process with one thread. It prints a JSON line when it is ready, then for every line on its standard input it runs one
step and prints one JSON line: `cpu` seconds of the whole process, `loss`, `grad_norm`. It ends with its standard input.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 49152
GROUP = 8
LR = 1e-6
FILLER, FILLER_ID = "~", 96
"""A character that the small tokenizer gives one id however often it stands: a prompt of known length."""


def make_model(folder: Path, seed: int) -> int:
    """Write a Llama of SmolLM2-135M's shape with random weights and a small tokenizer; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rl_trainer.tiny_model import make_tiny_model

    make_tiny_model(folder)  # for its tokenizer; config and weights are replaced
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=2,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def stored_rollouts(n: int, prompt: int, median: int, sigma: float, cap: int, seed: int) -> list[dict[str, Any]]:
    """n rollouts in groups of GROUP: a prompt of `prompt` random ids per group, lognormal answers of at most `cap` ids, rewards.

    Rewards are in the hundreds, so that TRL's 1e-4 beside the standard deviation is no difference.
    """
    draw = random.Random(seed)
    rollouts: list[dict[str, Any]] = []
    for number in range(n):
        if number % GROUP == 0:
            ids = [draw.randrange(3, VOCABULARY) for _ in range(prompt)]
        length = max(1, min(cap, round(median * draw.lognormvariate(0.0, sigma))))
        answer = [draw.randrange(3, VOCABULARY) for _ in range(length)]
        rollouts.append({"prompt": ids, "answer": answer, "reward": draw.uniform(0, 1000)})
    return rollouts


def reward(answer: Sequence[int]) -> float:
    """Of a sampled answer: any number that differs within a group."""
    return float(sum(answer) % 997)


def say(**values: Any) -> None:
    """One JSON line to the driver."""
    print(json.dumps(values), file=sys.__stdout__, flush=True)


def wait_for_turn() -> bool:
    """Block until the driver asks for a step; False when there are no more."""
    return bool(sys.stdin.readline())
