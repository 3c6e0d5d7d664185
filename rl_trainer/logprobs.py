"""Log-probabilities of sampled tokens from hidden states, in chunks; the backward pass recomputes the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ChunkedLogProbs(torch.autograd.Function):
    """Never holds more than [chunk, V] logits. Softmax and sums in float32 (float64 for float64 weights)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """hidden [M, H], weight [V, H], targets [M] -> log-probabilities [M], entropies [M]."""
        table = weight.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        logprobs = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part].to(dtype) @ table.T).to(wide) / temperature
            normalizer[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normalizer[part]
            probability = (logits - normalizer[part, None]).exp()
            entropy[part] = normalizer[part] - (probability * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, normalizer)
        ctx.temperature, ctx.chunk, ctx.dtype = temperature, chunk, dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """d lp / d logits = (onehot - softmax) / temperature."""
        hidden, weight, targets, normalizer = ctx.saved_tensors
        grad, table = gradients[0], weight.to(ctx.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            inputs = hidden[part].to(ctx.dtype)
            logits = (inputs @ table.T).to(normalizer.dtype) / ctx.temperature
            scale = (grad[part] / ctx.temperature)[:, None]
            slope = -(logits - normalizer[part, None]).exp() * scale
            slope.scatter_add_(1, targets[part, None], scale)
            slope = slope.to(ctx.dtype)
            grad_hidden[part] = (slope @ table).to(hidden.dtype)
            grad_weight += (slope.T @ inputs).to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden W^T / temperature) at `targets`, and its entropy (no gradient). [M, H] -> [M], [M].

    The temperature is the sampler's: otherwise the importance ratio is not 1 before the first update.
    """
    result = _ChunkedLogProbs.apply(hidden, weight, targets, temperature, chunk, dtype or weight.dtype)  # type: ignore[no-untyped-call]
    return result[0], result[1]
