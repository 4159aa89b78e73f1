"""Compute log-probabilities in blocks; verl imports this in each process of a training (IMPORTED_BY_VERL).

Where flash-attn's cross entropy cannot be imported, verl 0.9.1 uses ``logprobs_from_logits_v2``
(verl/utils/torch_functional.py: logprobs_from_logits). It loops over the first axis of (batch, tokens, vocabulary), but
the engines pass (tokens, vocabulary): one small operation for each token, forward and backward. Importing this module
replaces it. The entropy has no such loop: verl computes it at once, or in blocks
(``entropy_from_logits_with_chunking``).
"""

from __future__ import annotations

from typing import Any

import torch
from verl.utils import torch_functional

# Numbers in a block: 256 MiB in float32, whatever the vocabulary.
BLOCK = 2**26


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch is not installed where mypy runs
    """Log-probabilities whose backward pass computes the softmax again, so that only the logits are kept for it."""

    @staticmethod
    def forward(ctx: Any, logits: Any, labels: Any) -> Any:
        normalizers = torch.cat([_wide(rows).logsumexp(-1) for rows in logits.split(_block_rows(logits))])
        ctx.save_for_backward(logits, labels, normalizers)
        return _wide(logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)) - normalizers

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
        logits, labels, normalizers = ctx.saved_tensors
        result, size = torch.empty_like(logits), _block_rows(logits)
        for start in range(0, len(logits), size):
            block = slice(start, start + size)
            label = labels[block].unsqueeze(-1)
            softmax = (_wide(logits[block]) - normalizers[block].unsqueeze(-1)).exp_()
            softmax.scatter_(-1, label, softmax.gather(-1, label) - 1)
            result[block] = softmax.mul_(-gradient[block].unsqueeze(-1))
        return result, None


def _wide(numbers: Any) -> Any:
    """Return numbers in which sums over a vocabulary are exact enough."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def _block_rows(logits: Any) -> int:
    vocabulary: int = logits.shape[-1]
    return max(1, BLOCK // vocabulary)


def log_probs_in_blocks(logits: Any, labels: Any) -> Any:
    """Return the log-probability of each label.

    Args:
        logits: Shape (..., vocabulary).
        labels: Token ids, shape (...).

    Returns:
        Shape (...), in float32 as flash-attn's function, also for narrower logits; float64 for float64.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    return _LogProbs.apply(rows, labels.reshape(-1)).view(labels.shape)


torch_functional.logprobs_from_logits_v2 = log_probs_in_blocks
