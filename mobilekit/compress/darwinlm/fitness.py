"""How far a candidate is from the dense model: KL divergence on a fresh minibatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

_KEPT = 1 << 30  # bytes of dense logits that are kept; more are computed for every candidate anew
_ROWS = 256  # positions whose distributions are held at once: V may be 150,000


def mean_kl(dense: Tensor, candidate: Tensor) -> float:
    """Return the mean over positions of KL(p_dense ‖ p_candidate), in nats.

    Args:
        dense: Logits, shape (..., V), any float dtype.
        candidate: Logits, likewise.

    Source: DarwinLM, section 3.3.
    """
    vocab = dense.shape[-1]
    p, q = dense.reshape(-1, vocab), candidate.reshape(-1, vocab)
    total = 0.0
    for start in range(0, len(p), _ROWS):
        log_p = torch.log_softmax(p[start : start + _ROWS].float(), dim=-1)
        log_q = torch.log_softmax(q[start : start + _ROWS].float(), dim=-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
    return total / len(p)


class Teacher:
    """The dense model's logits on a minibatch, kept where they are small enough.

    Args:
        model: The dense model, in evaluation mode.
        rows: Token ids, shape (N, S).
    """

    def __init__(self, model: nn.Module, rows: Tensor) -> None:
        self._model, self.rows = model, rows
        vocab = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        keep = rows.numel() * vocab * next(model.parameters()).element_size() <= _KEPT
        self._kept = [self._logits(row) for row in rows] if keep else None

    def _logits(self, row: Tensor) -> Tensor:
        return logits(self._model, row[None])

    def divergence(self, candidate: nn.Module) -> float:
        """Return the mean KL(p_dense ‖ p_candidate) over all positions but the last of each row."""
        total = 0.0
        for number, row in enumerate(self.rows):
            dense = self._kept[number] if self._kept is not None else self._logits(row)
            total += mean_kl(dense, logits(candidate, row[None]))
        return total / len(self.rows)


def logits(model: Any, ids: Tensor) -> Tensor:
    """Return the logits of all positions but the last, shape (B, S - 1, V)."""
    device = next(model.parameters()).device
    with torch.no_grad():
        found: Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return found[:, :-1]


def drawn(rows: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    """Return random rows of a pool, without repeats, of at least ``tokens`` tokens.

    Where the pool is smaller than that, all of it.
    """
    count = min(len(rows), rows_of(rows, tokens))
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def rows_of(rows: Tensor, tokens: int) -> int:
    """Return how many rows of a pool so many tokens take."""
    return -(-tokens // rows.shape[1])
