"""The maths of the calibrated criteria: sums over the tokens that each expert was given."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

CalibratedCriterion = Literal["frequency", "seer", "ean", "reap", "man", "msan"]


class ExpertStatistics:
    """Running sums of one layer, from which every calibrated criterion follows.

    With X_e the tokens routed to expert e, g_e(x) the router's weight after top-k and f_e(x) the
    expert's output before weighting. Kept on the CPU, where the order of a sum is fixed, in
    float64; each of shape (E,).

    Args:
        count: Experts E of the layer.

    Attributes:
        tokens: |X_e|.
        gates: Σ g_e(x).
        norms: Σ ‖f_e(x)‖₂.
        squares: Σ ‖f_e(x)‖₂².
        gated_norms: Σ g_e(x)·‖f_e(x)‖₂.
    """

    def __init__(self, count: int) -> None:
        self.tokens = torch.zeros(count, dtype=torch.float64)
        self.gates = torch.zeros_like(self.tokens)
        self.norms = torch.zeros_like(self.tokens)
        self.squares = torch.zeros_like(self.tokens)
        self.gated_norms = torch.zeros_like(self.tokens)

    def add(self, index: Tensor, weights: Tensor, norms: Tensor | None = None) -> Self:
        """Add a batch of T tokens, each of which went to k experts.

        Args:
            index: Experts, shape (T, k), integers in [0, E).
            weights: g_e(x), shape (T, k), any float dtype.
            norms: ‖f_e(x)‖₂, shape (T, k), or ``None`` where outputs were not looked at.

        Raises:
            ValueError: If the shapes differ, or an index is outside of [0, E).
        """
        given = [index, weights] if norms is None else [index, weights, norms]
        if index.dim() != 2 or any(tensor.shape != index.shape for tensor in given):
            raise ValueError(f"expected one (T, k), got {[list(t.shape) for t in given]}")
        experts = index.detach().cpu().flatten().long()
        if experts.numel() and not 0 <= int(experts.min()) <= int(experts.max()) < len(self.tokens):
            raise ValueError(f"expert ids outside of 0 to {len(self.tokens) - 1}")
        gates = _wide(weights)
        self.tokens.index_add_(0, experts, torch.ones_like(gates))
        self.gates.index_add_(0, experts, gates)
        if norms is not None:
            sizes = _wide(norms)
            self.norms.index_add_(0, experts, sizes)
            self.squares.index_add_(0, experts, sizes.square())
            self.gated_norms.index_add_(0, experts, gates * sizes)
        return self

    def importance(self, criterion: CalibratedCriterion) -> Tensor:
        """Return the experts' scores, shape (E,), float64; higher means keep.

        An expert that no token was routed to scores 0.

        Source: SEER-MoE (seer; formula inferred from its inputs), EAN (ean) and REAP (reap), as the
        baselines of arXiv 2603.18492; arXiv 2606.15716 (man, msan; formulas inferred from the names
        and from its rule, routed-token means without the gate).
        """
        sums = {
            "frequency": self.tokens,
            "seer": self.gates,
            "ean": self.norms,
            "reap": self.gated_norms,
            "man": self.norms,
            "msan": self.squares,
        }
        if criterion in ("frequency", "seer", "ean"):
            return sums[criterion].clone()
        return sums[criterion] / self.tokens.clamp(min=1)

    @property
    def unrouted(self) -> list[int]:
        """Experts that no token was routed to."""
        return [expert for expert, tokens in enumerate(self.tokens.tolist()) if tokens == 0]

    def is_finite(self) -> bool:
        """Whether every sum is a number."""
        sums = (self.gates, self.norms, self.squares, self.gated_norms)
        return all(bool(values.isfinite().all()) for values in sums)


def _wide(values: Tensor) -> Tensor:
    return values.detach().cpu().double().flatten()
