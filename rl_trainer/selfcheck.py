"""`omnigym selfcheck`: the equivalences the trainer rests on, computed on this machine with a tiny model.

The engine here is a second copy of the model in this process, which is given its weights as vLLM is: as a file. That vLLM itself holds the
weights is checked by every run, after every sync.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from gym_servers.models.engine import Generation
from gym_servers.models.ledger import Ledger
from gym_servers.protocol import Item

if TYPE_CHECKING:
    from rl_trainer.options import PolicyOptions
    from rl_trainer.packing import TrainSegment
    from rl_trainer.policy import PolicyWorker

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One equivalence: what was compared, the measured figure, and whether it holds."""

    name: str
    passed: bool
    detail: str


def run_selfcheck() -> list[Check]:
    """All checks of the trainer; none needs a network, an engine or a real model."""
    from rl_trainer.options import OptimizerOptions, PolicyOptions
    from rl_trainer.policy import PolicyWorker
    from rl_trainer.tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory(prefix="omnigym-selfcheck-") as folder:
        model = str(make_tiny_model(Path(folder) / "model"))
        options = PolicyOptions(
            model=model, dtype="float32", device="cpu", optimizer=OptimizerOptions(lr=1e-3, warmup_steps=0)
        )
        worker = PolicyWorker(0, 1, options)
        batch = make_batch(worker)
        checks: list[tuple[str, Callable[[], Check]]] = [
            ("packed = padded log-probabilities", lambda: _packed_is_padded(worker, batch)),
            ("packed = split gradients", lambda: _packed_is_split(worker, batch)),
            ("loss = float64 reference", lambda: _loss_is_reference(worker, batch)),
            ("ids sampled = ids trained", lambda: _ids_are_kept(worker, CopyEngine(options))),
            ("digest after a sync", lambda: _digest(worker, CopyEngine(options), batch, Path(folder))),
            ("canary after a sync", lambda: _canary(worker, CopyEngine(options), batch, Path(folder))),
        ]
        results = []
        for name, check in checks:
            try:
                results.append(check())
            except Exception as error:  # a check that raises is a failed check, and the others still run
                results.append(Check(name, False, f"{type(error).__name__}: {error}"))
        worker.close()
        return results


def make_batch(worker: PolicyWorker, seed: int = 0, size: int = 6) -> list[TrainSegment]:
    """Random segments whose lp_gen differs a little from the worker's own log-probabilities."""
    from rl_trainer.packing import TrainSegment

    random = np.random.default_rng(seed)
    batch = []
    for index in range(size):
        length = int(random.integers(12, 60))
        ids = random.integers(3, 300, length)
        mask = (np.arange(length) >= 6) & (random.random(length) > 0.2)
        lp = np.concatenate([[0.0], worker.score([ids.tolist()])[0]]) + random.normal(0, 0.1, length)
        batch.append(
            TrainSegment(ids, mask.astype(np.int64), lp * mask, float(random.normal()), "selfcheck", f"rollout-{index}")
        )
    return batch


def _gradients(worker: PolicyWorker, batch: list[TrainSegment], budget: int) -> np.ndarray:
    from rl_trainer.policy import gradients

    return gradients(worker, batch, budget).numpy()


def _packed_is_padded(worker: PolicyWorker, batch: list[TrainSegment]) -> Check:
    import torch
    from transformers import AutoModelForCausalLM

    from rl_trainer.packing import pack

    width = max(len(s.token_ids) for s in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    for row, segment in enumerate(batch):
        ids[row, : len(segment.token_ids)] = torch.as_tensor(segment.token_ids)
        attention[row, : len(segment.token_ids)] = 1
    plain = AutoModelForCausalLM.from_pretrained(worker.options.model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logprobs = plain(input_ids=ids, attention_mask=attention).logits.log_softmax(-1)
        packed = worker.scorer(pack(batch, range(len(batch))))[0]
    rows = [
        logprobs[row, position - 1, segment.token_ids[position]]
        for row, segment in enumerate(batch)
        for position in np.flatnonzero(segment.mask)
    ]
    worst = float((torch.stack(rows) - packed).abs().max())
    return Check("packed = padded log-probabilities", worst < TOLERANCE, f"largest difference {worst:.1e}")


def _packed_is_split(worker: PolicyWorker, batch: list[TrainSegment]) -> Check:
    whole, split = _gradients(worker, batch, 100_000), _gradients(worker, batch, 1)
    error = float(np.linalg.norm(whole - split) / np.linalg.norm(whole))
    return Check("packed = split gradients", error < TOLERANCE, f"relative difference {error:.1e}")


def _loss_is_reference(worker: PolicyWorker, batch: list[TrainSegment]) -> Check:
    algorithm = worker.options.algorithm
    bounds = algorithm.importance
    total, count = 0.0, 0
    for segment in batch:
        lp = np.concatenate([[0.0], worker.score([segment.token_ids.tolist()], algorithm.temperature)[0]])
        deltas = [float(lp[t] - segment.lp_gen[t]) for t in np.flatnonzero(segment.mask)]
        if math.fsum(math.exp(abs(d)) for d in deltas) / len(deltas) > bounds.sequence_max:
            continue
        count += len(deltas)
        total += math.fsum(math.exp(d) * segment.advantage for d in deltas if bounds.low <= math.exp(d) <= bounds.high)
    from rl_trainer.policy import batch_loss

    mine, reference = batch_loss(worker, batch), -total / count
    error = abs(mine - reference) / abs(reference)
    return Check("loss = float64 reference", error < TOLERANCE, f"{mine:.7f}, reference {reference:.7f}")


class CopyEngine:
    """An inference engine in this process: a copy of the model with weights of its own."""

    def __init__(self, options: PolicyOptions) -> None:
        from rl_trainer.policy import PolicyWorker

        self.worker = PolicyWorker(0, 1, options)

    def update(self, path: Path) -> str:
        """Load a weights file; the digest of what was read."""
        from safetensors.torch import load_file

        from rl_trainer.weights import weights_digest

        tensors = load_file(path)
        self.worker.load(tensors)
        return weights_digest(tensors)

    def sample(self, prompt_ids: Sequence[int], count: int, seed: int) -> Generation:
        """At most `count` tokens after `prompt_ids` at temperature 1."""
        import torch

        random, ids, logprobs = np.random.default_rng(seed), list(prompt_ids), list[float]()
        end = self.worker.model.config.eos_token_id
        while len(logprobs) < count and (not logprobs or ids[-1] != end):
            with torch.no_grad():
                logits = self.worker.model(
                    input_ids=torch.tensor([ids]),
                    position_ids=torch.arange(len(ids))[None],
                    trunks=((len(ids), ()),),
                    use_cache=False,
                ).logits[0, -1]
            lp = logits.double().log_softmax(-1).numpy()
            ids.append(int(random.choice(len(lp), p=np.exp(lp) / np.exp(lp).sum())))
            logprobs.append(float(lp[ids[-1]]))
        return Generation(ids[len(prompt_ids) :], logprobs, "stop" if ids[-1] == end else "length", (0,))


def _ids_are_kept(worker: PolicyWorker, engine: CopyEngine) -> Check:
    """Three turns through the ledger: what is packed for training is what was sampled, and its ratio is 1."""
    from gym_servers.models.template import ChatTemplate
    from gym_servers.models.transformers_tokenizer import CheckpointTokenizer
    from rl_trainer.packing import TrainSegment, pack

    tokenizer = CheckpointTokenizer(worker.options.model)
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special)

    def render(messages: Sequence[Item], generate: bool, raw: dict[int, str]) -> str:
        return template.render(messages, None, reasoning=None, generation=generate, raw=raw)

    ledger, messages = Ledger("selfcheck"), list[Item]()
    sampled, lp_gen = list[int](), list[float]()
    for turn, question in enumerate(("write 12 words", "and the sea?", "why")):
        messages.append({"role": "user", "content": question})
        prompt = ledger.prompt(messages, render, tokenizer)
        generation = engine.sample(prompt.ids, 12, seed=turn)
        raw = tokenizer.decode(generation.token_ids).removesuffix(tokenizer.end_token)
        answer: Item = {"role": "assistant", "content": raw}
        ledger.record(messages, answer, prompt, raw, generation)
        messages.append(answer)
        sampled += generation.token_ids
        lp_gen += generation.logprobs
    segments = [
        TrainSegment(s.token_ids, s.mask, s.lp_gen, 1.0, "selfcheck", "rollout", k)  # type: ignore[arg-type]
        for k, s in enumerate(ledger.export().segments)
    ]
    packed = pack(segments, range(len(segments)))
    predicted = packed.ids[0, packed.source + 1].tolist()
    lp = [value for s in segments for value in np.array(worker.score([s.token_ids.tolist()])[0])[s.mask[1:] == 1]]
    worst = max(abs(mine - theirs) for mine, theirs in zip(lp, lp_gen, strict=True))
    return Check(
        "ids sampled = ids trained",
        sampled == packed.targets.tolist() == predicted and worst < 10 * TOLERANCE,
        f"{len(sampled)} tokens of 3 turns in {len(segments)} segment(s), largest |lp - lp_gen| {worst:.1e}",
    )


def _digest(worker: PolicyWorker, engine: CopyEngine, batch: list[TrainSegment], folder: Path) -> Check:
    """Changes are noticed too: the digest after one more step is another."""
    sent = worker.export(folder / "first.safetensors", "float32")
    received = engine.update(folder / "first.safetensors")
    worker.train_step(batch, 0)
    later = worker.export(folder / "second.safetensors", "float32")
    return Check("digest after a sync", sent == received != later, f"sent and received {sent[:16]}")


def _canary(worker: PolicyWorker, engine: CopyEngine, batch: list[TrainSegment], folder: Path) -> Check:
    """After a training step the synced engine scores as the trainer does; with the old weights it did not."""
    from rl_trainer.weights import mean_difference

    sequences = [segment.token_ids.tolist() for segment in batch]
    worker.train_step(batch, 0)
    stale = mean_difference(worker.score(sequences), engine.worker.score(sequences))
    worker.export(folder / "weights.safetensors", "float32")
    engine.update(folder / "weights.safetensors")
    fresh = mean_difference(worker.score(sequences), engine.worker.score(sequences))
    return Check(
        "canary after a sync", fresh < TOLERANCE < stale, f"mean |dlp| {fresh:.1e}, before the sync {stale:.1e}"
    )


def register(app: typer.Typer) -> None:
    """Add the command `selfcheck`."""

    @app.command()
    def selfcheck() -> None:
        """Check on this machine that the trainer computes what it says (a tiny model, about 20 seconds)."""
        from rich.console import Console
        from rich.table import Table
        from transformers.utils import logging as model_logging

        model_logging.disable_progress_bar()
        checks = run_selfcheck()
        table = Table(title="omnigym selfcheck", caption="engine: a second copy of the model in this process")
        for column in ("check", "result", "measured"):
            table.add_column(column)
        for check in checks:
            table.add_row(check.name, "[green]ok[/]" if check.passed else "[red]FAILED[/]", check.detail)
        Console().print(table)
        if not all(check.passed for check in checks):
            raise typer.Exit(1)
