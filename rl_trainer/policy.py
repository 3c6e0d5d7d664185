"""The policy worker: one rank of the group that holds the float32 master weights and takes optimiser steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gym_servers.protocol import OmnigymError
from rl_trainer.logprobs import token_logprobs
from rl_trainer.loss import policy_loss
from rl_trainer.options import PolicyOptions
from rl_trainer.packing import ATTENTION, Packed, TrainSegment, pack, plan_micro_batches, register_attention
from rl_trainer.step_metrics import StepMetrics
from rl_trainer.weights import DTYPES, cast_for_engine, checkpoint_tensors, write_weights


class GradientNotFinite(OmnigymError):
    """A step whose gradient is NaN or infinite; it was not taken."""


class Scorer(nn.Module):
    """The causal model behind one forward: packed ids in, log-probabilities and entropies of sampled tokens out.

    The language-model head is applied inside, so that a sharded model has it unsharded when it is needed.
    """

    def __init__(self, model: Any, options: PolicyOptions) -> None:
        super().__init__()
        self.model = model
        self.chunk = options.logprob_chunk
        self.temperature = options.algorithm.temperature
        self.autocast = options.dtype == "bf16"

    def forward(self, packed: Packed, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """[M] log-probabilities, [M] entropies."""
        device = packed.ids.device.type
        with torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext():
            hidden = self.model.model(
                input_ids=packed.ids,
                position_ids=packed.position_ids,
                use_cache=False,
                trunks=packed.trunks,
            ).last_hidden_state
        weight = self.model.get_output_embeddings().weight
        # No autocast in here: a custom backward would run outside it. The cast is explicit instead.
        return token_logprobs(
            hidden[0, packed.source],
            weight,
            packed.targets,
            temperature=temperature or self.temperature,
            chunk=self.chunk,
            dtype=torch.bfloat16 if self.autocast else weight.dtype,
        )


def load_scorer(path: str, options: PolicyOptions, device: torch.device) -> Scorer:
    """A model in float32 with packed attention, dropout off, as a Scorer on `device`."""
    from transformers import AutoModelForCausalLM

    register_attention()
    if not Path(path).joinpath("config.json").exists():
        raise FileNotFoundError(f"no model at {path}: config.json is missing. `omnigym model get` fetches one.")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=ATTENTION)
    check_head(model)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Scorer(model.to(device).eval(), options)


HEAD_LIMIT = 1e-3
"""Nats a token, in float32."""


@torch.no_grad()
def check_head(model: Any) -> None:
    """That the model's logits are its last hidden state times the head's weight, as Scorer has it: on 8 tokens. Some architectures scale,
    cap or bias them (Granite, Cohere, Gemma 2, Phi), and every log-probability would be wrong. Raises OmnigymError."""
    name = type(model).__name__
    if not hasattr(model, "model") or model.get_output_embeddings() is None:
        raise OmnigymError(f"{name}: not supported, its layers are not at `.model` or it has no output head")
    count = 8
    ids = torch.arange(count)[None] % model.config.vocab_size
    given = {"input_ids": ids, "position_ids": torch.arange(count)[None], "use_cache": False, "trunks": ((count, ()),)}
    theirs = model(**given).logits.float().log_softmax(-1)
    mine = (model.model(**given).last_hidden_state @ model.get_output_embeddings().weight.T).float().log_softmax(-1)
    apart = float((theirs - mine).abs().mean())
    if not apart <= HEAD_LIMIT:
        raise OmnigymError(
            f"{name}: not supported, it scales, caps or biases its logits: they differ from hidden states times head by {apart:.3g} "
            "nats a token"
        )


class PolicyWorker:
    """Rank `rank` of `world_size`. Every rank is given the whole batch and takes its share of the micro-batches."""

    def __init__(
        self, rank: int, world_size: int, options: PolicyOptions, init_method: str = "tcp://127.0.0.1:29531"
    ) -> None:
        self.rank, self.world_size, self.options = rank, world_size, options
        if options.threads:
            torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
        if cuda and not torch.cuda.is_available():
            raise OmnigymError("policy.device: cuda, and torch sees no CUDA device here; set policy.device=cpu")
        self.device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
        self.sharded = cuda and world_size > 1
        if world_size > 1 and not dist.is_initialized():
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                init_method=init_method,
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=options.collective_seconds),
            )
        self.scorer = load_scorer(options.model, options, self.device)
        if options.gradient_checkpointing:
            self.scorer.train()  # transformers recomputes activations only in training mode; dropout is refused
        if options.freeze_router:
            freeze_router(self.model)
        self.reference: Scorer | None = None
        if options.algorithm.kl_beta > 0:
            self.reference = load_scorer(options.reference or options.model, options, self.device).requires_grad_(False)
        if self.sharded:
            self._shard()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        settings = options.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over memory: a seventh of the time of the default on CPU
        )

    @property
    def model(self) -> Any:
        """The transformers model inside the scorer."""
        return self.scorer.model

    def _shard(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in self.model.model.layers:
            fully_shard(layer)
        fully_shard(self.scorer)

    def train_step(self, batch: Sequence[TrainSegment], step: int) -> dict[str, Any]:
        """One step (counted from 0) on the segments of all valid rollouts; algorithm.md section 1.

        Returns flat metrics plus `per_environment`, `books` (rollout id -> class -> tokens) `worst_tokens` and `warnings`.
        With optimizer_steps_per_batch = K > 1: one pass for lp_old, then K full-batch optimiser steps, and `clipped_fraction` of the kept
        tokens of all but the first, whose ratios are 1.
        """
        started = time.monotonic()
        algorithm, optimizer = self.options.algorithm, self.options.optimizer
        lr = optimizer.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = sum(segment.sampled for segment in batch)
        metrics = StepMetrics(batch, algorithm)
        result: dict[str, float] = {"lr": lr, "skipped": 0.0, "grad_norm": 0.0, "loss": 0.0}
        if total:
            plan = self._plan(batch)
            fixed = algorithm.optimizer_steps_per_batch > 1
            lp_old = self._score(batch, plan, self.scorer) if fixed else None
            lp_ref = self._score(batch, plan, self.reference) if self.reference is not None else None
            clipped = moved = 0.0
            for index in range(algorithm.optimizer_steps_per_batch):
                self.optimizer.zero_grad(set_to_none=True)
                observe = metrics if index == 0 else StepMetrics(batch, algorithm)
                loss = self._accumulate(batch, plan, float(total), lp_old, lp_ref, observe)
                observe.gather(self.world_size)
                kept = observe.kept_tokens()
                if kept == 0:
                    self.optimizer.zero_grad(set_to_none=True)
                    result["skipped"] = 1.0
                    break
                result["loss"] = self._sum(loss) * total / kept
                result["grad_norm"] = self._apply(total / kept, index)
                if index:
                    clipped, moved = clipped + observe.clipped_tokens(), moved + kept
            if moved:
                result["clipped_fraction"] = clipped / moved
        else:
            result["skipped"] = 1.0
        report = metrics.report()
        return {**result, **report, "seconds": time.monotonic() - started}

    def _plan(self, batch: Sequence[TrainSegment]) -> list[tuple[list[int], bool]]:
        """Micro-batches (members, needs a gradient) of the whole batch, the same on every rank."""
        moving = [i for i, s in enumerate(batch) if s.sampled and (s.advantage != 0 or self.reference is not None)]
        still = [i for i, s in enumerate(batch) if s.sampled and not (s.advantage != 0 or self.reference is not None)]
        plan: list[tuple[list[int], bool]] = []
        for indices, gradient in ((moving, True), (still, False)):
            bins = plan_micro_batches(batch, indices, self.options.micro_batch_tokens)
            plan += [(members, gradient) for members in bins]
        return plan

    def _mine(self, plan: list[tuple[list[int], bool]]) -> list[tuple[list[int], bool, bool]]:
        """This rank's (members, gradient, counts). Sharded ranks must run equally many passes: the rest do not count."""
        turns: list[tuple[list[int], bool, bool]] = []
        for gradient in (True, False):
            kind = [members for members, needs in plan if needs == gradient]
            own = [(members, gradient, True) for members in kind[self.rank :: self.world_size]]
            if self.sharded and kind:
                own += [(kind[0], gradient, False)] * (-(-len(kind) // self.world_size) - len(own))
            turns += own
        return turns

    def _score(
        self, batch: Sequence[TrainSegment], plan: list[tuple[list[int], bool]], scorer: Scorer | None
    ) -> dict[tuple[int, ...], Tensor]:
        """Log-probabilities of this rank's micro-batches without gradient, by members."""
        assert scorer is not None
        scores: dict[tuple[int, ...], Tensor] = {}
        with torch.no_grad():
            for members, _, _ in self._mine(plan):
                scores[tuple(members)] = scorer(pack(batch, members, self.device))[0]
        return scores

    def _accumulate(
        self,
        batch: Sequence[TrainSegment],
        plan: list[tuple[list[int], bool]],
        divisor: float,
        lp_old: dict[tuple[int, ...], Tensor] | None,
        lp_ref: dict[tuple[int, ...], Tensor] | None,
        metrics: StepMetrics,
    ) -> float:
        """Forward and backward over this rank's micro-batches, divisor N0; returns this rank's part of the loss."""
        loss_sum = 0.0
        # Sharded gradients are averaged over ranks, but the divisor is global: undo the average.
        factor = float(self.world_size) if self.sharded else 1.0
        for members, gradient, counts in self._mine(plan):
            packed = pack(batch, members, self.device)
            with nullcontext() if gradient else torch.no_grad():
                lp, entropy = self.scorer(packed)
                old = lp.detach() if lp_old is None else lp_old[packed.members]
                loss, weights, sums = policy_loss(
                    lp,
                    old,
                    packed.lp_gen,
                    packed.advantage,
                    packed.segment,
                    len(members),
                    divisor,
                    self.options.algorithm,
                    lp_ref=None if lp_ref is None else lp_ref[packed.members],
                )
                if gradient:
                    torch.autograd.backward(loss * (factor if counts else 0.0))
            if counts:
                loss_sum += float(loss.detach())
                metrics.observe(packed, lp.detach(), old, entropy, weights, sums)
        return loss_sum

    def _sum(self, value: float) -> float:
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def _apply(self, correction: float, index: int) -> float:
        """Sum gradients over ranks, multiply by N0/N once, clip, take inner step `index`. Returns the norm before clipping."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.world_size > 1 and not self.sharded:
                dist.all_reduce(parameter.grad)
            parameter.grad.mul_(correction)
        norm: Any = nn.utils.clip_grad_norm_(self.parameters, self.options.optimizer.grad_clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            left = f"{index} inner steps on the same batch were taken before it" if index else "weights are unchanged"
            raise GradientNotFinite(f"the gradient norm is {float(norm)}: the step was not taken, {left}")
        self.optimizer.step()
        return float(norm)

    @torch.no_grad()
    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[list[float]]:
        """Log-probabilities of tokens 1..T-1 of each sequence (for the canary), under the current weights."""
        scores = []
        for ids in token_ids:
            mask = [0] + [1] * (len(ids) - 1)
            segment = TrainSegment(ids, mask, [0.0] * len(ids), 0.0, "", "canary")  # type: ignore[arg-type]
            scores.append(self.scorer(pack([segment], [0], self.device), temperature)[0].tolist())
        return scores

    @torch.no_grad()
    def negate(self) -> None:
        """Change the sign of every parameter: weights that differ in all tensors, and come back bit for bit the second time."""
        for parameter in self.model.parameters():
            parameter.neg_()

    def weights(self) -> dict[str, Tensor]:
        """Whole float32 master weights under checkpoint names (a collective when sharded)."""
        state = self._full(lambda options: _distributed().get_model_state_dict(self.model, options=options))
        return checkpoint_tensors(self.model, state)

    def _full(self, get: Callable[[Any], Any]) -> dict[str, Tensor] | None:
        if not self.sharded:
            return None
        full: dict[str, Tensor] = get(_distributed().StateDictOptions(full_state_dict=True, cpu_offload=True))
        return full

    def export(self, path: str | Path, dtype: str = "bfloat16") -> str:
        """Write the weights for the engine as one safetensors file (rank 0); returns the digest of what was written."""
        tensors = cast_for_engine(self.weights(), DTYPES[dtype])
        return write_weights(tensors, path) if self.rank == 0 else ""

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state for a checkpoint (a collective when sharded)."""
        full = self._full(lambda o: _distributed().get_optimizer_state_dict(self.scorer, self.optimizer, options=o))
        return full if full is not None else self.optimizer.state_dict()

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Any] | None = None) -> None:
        """Restore weights and optimiser from a checkpoint."""
        from rl_trainer.checkpoint import load_into

        named = optimizer is not None and any(isinstance(key, str) for key in optimizer["state"])
        if optimizer is not None and optimizer["state"] and named != self.sharded:
            raise OmnigymError(
                f"the checkpoint's optimiser is of {'several GPU workers' if named else 'unsharded workers'}, which "
                f"{'one cannot' if named else 'several GPU workers cannot'} go on with: resume with policy.workers as it was"
            )
        if not self.sharded:
            load_into(self.model, weights)
            if optimizer is not None:
                self.optimizer.load_state_dict(optimizer)
                self._set_options()
            return
        options = _distributed().StateDictOptions(full_state_dict=True, strict=False)
        _distributed().set_model_state_dict(self.model, weights, options=options)
        if optimizer is not None:
            _distributed().set_optimizer_state_dict(self.scorer, self.optimizer, optimizer, options=options)
            self._set_options()

    def _set_options(self) -> None:
        """A checkpoint brings the optimiser's options of its time along: those of the configuration count."""
        chosen = self.options.optimizer
        for group in self.optimizer.param_groups:
            group.update(betas=chosen.betas, eps=chosen.eps, weight_decay=chosen.weight_decay)

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def batch_loss(worker: PolicyWorker, batch: Sequence[TrainSegment], backward: bool = False) -> float:
    """The loss of `batch` over N under the current weights; no optimiser step. `backward` leaves gradients over N."""
    total = float(sum(segment.sampled for segment in batch))
    metrics = StepMetrics(batch, worker.options.algorithm)
    worker.optimizer.zero_grad(set_to_none=True)
    plan = worker._plan(batch)
    lp_ref = worker._score(batch, plan, worker.reference) if worker.reference is not None else None
    loss = worker._accumulate(batch, plan, total, None, lp_ref, metrics)
    correction = total / max(1, metrics.kept_tokens())
    for parameter in worker.parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(correction)
    if not backward:
        worker.optimizer.zero_grad(set_to_none=True)
    return loss * correction


def gradients(worker: PolicyWorker, batch: Sequence[TrainSegment], budget: int) -> Tensor:
    """The batch's gradient as one vector, computed in micro-batches of `budget` tokens (single rank)."""
    before = worker.options
    worker.options = before.model_copy(update={"micro_batch_tokens": budget})
    try:
        batch_loss(worker, batch, backward=True)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in worker.parameters]
    finally:
        worker.options = before
    vector = torch.cat(parts).clone()
    worker.optimizer.zero_grad(set_to_none=True)
    return vector


def _distributed() -> Any:
    from torch.distributed.checkpoint import state_dict

    return state_dict


def freeze_router(model: nn.Module) -> list[str]:
    """Take router (gate) weights out of training [paper]; returns their names. A gated MLP's gate_proj is no router."""
    names = []
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if len(parts) >= 2 and parts[-2] in ("gate", "router"):
            parameter.requires_grad_(False)
            names.append(name)
    return names
