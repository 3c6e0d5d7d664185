"""The policy's workers: one rank each, in this process or as Ray actors, behind one set of calls.

Every call goes to every rank (weights are sharded on several devices, so export and checkpoint are collectives) and the answer
is rank 0's. Checkpoints are written where the weights are, never sent through Ray's object store. Each wait has a deadline and
a rank that dies is named at once, also while the others still wait for it in a collective.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gym_servers.protocol import OmnigymError
from rl_trainer.interrupt import INTERRUPTS
from rl_trainer.options import PolicyOptions
from rl_trainer.packing import TrainSegment

CANARY_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at 100 degrees and freezes at 0 degrees.",
    '{"name": "Alice", "age": 31, "city": "Oslo"}',
    "Question: What is 7 + 5? Answer: 7 + 5 = 12.",
)


class WorkerLost(OmnigymError):
    """A policy worker died or did not answer in time; names its rank and the call."""


class Policy(Protocol):
    """What the loop asks of the policy."""

    def train_step(self, batch: Sequence[TrainSegment], step: int) -> dict[str, Any]: ...

    def export(self, path: Path, dtype: str) -> str:
        """Write the engine's weights; the digest of what was written."""
        ...

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]: ...

    def negate(self) -> None:
        """Change the sign of every parameter, for a rehearsal of the sync; a second time restores them exactly."""
        ...

    def canary(self) -> list[list[int]]:
        """The fixed sequences, as token ids."""
        ...

    def save(self, folder: Path, step: int, state: dict[str, Any]) -> None: ...

    def restore(self, path: Path) -> dict[str, Any]:
        """Load a checkpoint; its step, sampler, config and extra."""
        ...

    def close(self) -> None: ...


class PolicyMember:
    """One rank. World size 1 in this process is the whole policy."""

    def __init__(self, rank: int, world_size: int, options: PolicyOptions, init_method: str) -> None:
        from rl_trainer.policy import PolicyWorker

        self.rank = rank
        self.worker = PolicyWorker(rank, world_size, options, init_method)

    def train_step(self, batch: Sequence[TrainSegment], step: int) -> dict[str, Any]:
        result = self.worker.train_step(batch, step)
        if result["warnings"]:
            result["warnings"] += [self._in_context(token) for token in result["worst_tokens"]]
        return result

    def _in_context(self, token: dict[str, Any]) -> str:
        """A line for a person: a token on which trainer and engine disagree, with its neighbours."""
        tokenizer = self._tokenizer()
        text = tokenizer.decode(token["context_ids"], skip_special_tokens=False)
        return (
            f"  {token['environment']} {token['rollout_id']} segment {token['segment']} position {token['position']}: "
            f"{tokenizer.decode([token['token_id']])!r} in {text!r}, lp {token['lp']:.3f}, lp_gen {token['lp_gen']:.3f}"
        )

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.worker.options.model)

    def export(self, path: Path, dtype: str) -> str:
        return self.worker.export(path, dtype)

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.worker.score(token_ids)

    def negate(self) -> None:
        self.worker.negate()

    def canary(self) -> list[list[int]]:
        tokenizer = self._tokenizer()
        return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in CANARY_TEXTS]

    def save(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        from rl_trainer.checkpoint import save_checkpoint

        weights, optimizer = self.worker.weights(), self.worker.optimizer_state()  # collectives: every rank is in them
        if self.rank == 0:
            save_checkpoint(folder, step, weights, optimizer, **state)

    def restore(self, path: Path) -> dict[str, Any]:
        import torch

        from rl_trainer.checkpoint import load_checkpoint

        saved = load_checkpoint(path)
        self.worker.load(saved.pop("weights"), saved.pop("optimizer"))
        torch.set_rng_state(saved.pop("rng"))
        return saved

    def close(self) -> None:
        self.worker.close()


def local_policy(options: PolicyOptions) -> Policy:
    """The policy in this process."""
    return PolicyMember(0, 1, options, "")


class _RayMember:
    """A Ray actor's class. The worker is made in `load`: rank 0's address must be known first."""

    def __init__(self) -> None:
        self.member: PolicyMember | None = None

    def address(self) -> str:
        import ray

        with socket.socket() as sock:
            sock.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{sock.getsockname()[1]}"

    def load(self, rank: int, world_size: int, options: dict[str, Any], init_method: str) -> None:
        self.member = PolicyMember(rank, world_size, PolicyOptions.model_validate(options), init_method)

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        return getattr(self.member, method)(*args)


class RayPolicy:
    """A ranked group of Ray actors. Ray must be up."""

    def __init__(self, options: PolicyOptions, workers: int, seconds: float) -> None:
        import ray

        self._ray, self.seconds = ray, seconds
        with INTERRUPTS.held():
            gpus = 0 if options.device == "cpu" else float(bool(ray.cluster_resources().get("GPU", 0)))
            threads = {"OMP_NUM_THREADS": str(options.threads or 1)}
            actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": threads})(_RayMember)
            self.members = [actor.remote() for _ in range(workers)]
            address = [self.members[0].address.remote()]
        init_method = self._wait(address, "start")[0] if workers > 1 else ""
        plain = options.model_dump()
        with INTERRUPTS.held():
            loading = [m.load.remote(rank, workers, plain, init_method) for rank, m in enumerate(self.members)]
        self._wait(loading, "load")

    def _wait(self, references: list[Any], call: str) -> list[Any]:
        deadline = time.monotonic() + self.seconds
        waiting = {reference: rank for rank, reference in enumerate(references)}
        answers: dict[int, Any] = {}
        while waiting:
            with INTERRUPTS.held():
                ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=1.0)
                for reference in ready:
                    rank = waiting.pop(reference)
                    answers[rank] = self._get(reference, rank, call)
            if waiting and time.monotonic() > deadline:
                raise WorkerLost(
                    f"policy worker rank {sorted(waiting.values())} did not finish '{call}' within {self.seconds:g} s "
                    "(policy.step_seconds)"
                )
        return [answers[rank] for rank in range(len(references))]

    def _get(self, reference: Any, rank: int, call: str) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkerLost(f"policy worker rank {rank} died during '{call}': {reason}; resume the run") from None
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OmnigymError):
                raise cause from None
            raise

    def _call(self, method: str, *args: Any) -> Any:
        with INTERRUPTS.held():
            references = [member.call.remote(method, args) for member in self.members]
        return self._wait(references, method)[0]

    def train_step(self, batch: Sequence[TrainSegment], step: int) -> dict[str, Any]:
        result: dict[str, Any] = self._call("train_step", batch, step)
        return result

    def export(self, path: Path, dtype: str) -> str:
        return str(self._call("export", path, dtype))

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        scores: list[list[float]] = self._call("score", token_ids)
        return scores

    def negate(self) -> None:
        self._call("negate")

    def canary(self) -> list[list[int]]:
        ids: list[list[int]] = self._call("canary")
        return ids

    def save(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        self._call("save", folder, step, state)

    def restore(self, path: Path) -> dict[str, Any]:
        state: dict[str, Any] = self._call("restore", path)
        return state

    def close(self) -> None:
        """End the actors; those that died already are no error."""
        with INTERRUPTS.held():
            for member in self.members:
                with contextlib.suppress(Exception):
                    self._ray.kill(member)
