"""Routers as modules of a program: which experts a token goes to, and with which weights.

They compute in the dtype of their own weights, which every artifact leaves in float32: they are
tiny, and a rounded score sends a token to another expert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .plain_linear import plain_linear

_MASKED = 1e4  # far beyond a score and its correction, and finite in float16


def router_parts(module: nn.Module) -> set[int]:
    """Return the ids of all modules that routers of ``module`` consist of."""
    routers = [m for m in module.modules() if isinstance(m, Routing)]
    return {id(part) for router in routers for part in router.modules()}


class Routing(nn.Module, ABC):
    """Chooses k of E experts for each token; what they have in common.

    Args:
        weight: Router rows, shape (E, D).
        top_k: Experts a token.
    """

    expert_ids: Tensor

    def __init__(self, weight: Tensor, *, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = weight.shape[0], top_k
        self.linear = plain_linear(weight)
        self.register_buffer("expert_ids", torch.arange(self.num_experts), persistent=False)

    @abstractmethod
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and ids of the chosen experts, each (…, k), of hidden states (…, D)."""

    def dense(self, hidden_states: Tensor) -> Tensor:
        """Return the weight of every expert, shape (…, E), zero where it was not chosen."""
        value, index = self.forward(hidden_states)
        chosen = index.unsqueeze(-1) == self.expert_ids  # (…, k, E)
        return (chosen * value.unsqueeze(-1)).sum(dim=-2)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return the router's logits, shape (…, E)."""
        return self.linear(hidden_states.to(self.linear.weight.dtype))  # type: ignore[no-any-return]


class SoftmaxRouting(Routing):
    """The most likely experts, with their probabilities.

    Args:
        weight: Router rows, shape (E, D).
        top_k: Experts a token.
        normalize: Whether the k probabilities are divided by their sum. A softmax over the k
            chosen logits alone is the same.
    """

    def __init__(self, weight: Tensor, *, top_k: int, normalize: bool) -> None:
        super().__init__(weight, top_k=top_k)
        self.normalize = normalize

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and ids of the chosen experts, each (…, k)."""
        probabilities = F.softmax(self.logits(hidden_states), dim=-1, dtype=torch.float32)
        value, index = torch.topk(probabilities, self.top_k, dim=-1)
        if self.normalize:
            value = value / value.sum(dim=-1, keepdim=True)
        return value, index


class CorrectedSoftmaxRouting(Routing):
    """Chosen by probability plus a correction, weighted by probability alone (ERNIE 4.5).

    Args:
        weight: Router rows, shape (E, D).
        correction: Added to the probabilities for the choice, shape (E,).
        top_k: Experts a token.
        smallest_sum: Least number that the k probabilities are divided by.
    """

    correction: Tensor

    def __init__(
        self, weight: Tensor, correction: Tensor, *, top_k: int, smallest_sum: float
    ) -> None:
        super().__init__(weight, top_k=top_k)
        self.smallest_sum = smallest_sum
        self.register_buffer("correction", correction.detach().clone())

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and ids of the chosen experts, each (…, k)."""
        probabilities = F.softmax(self.logits(hidden_states), dim=-1, dtype=torch.float32)
        _, index = torch.topk(probabilities + self.correction, self.top_k, dim=-1)
        value = torch.gather(probabilities, -1, index)
        total = value.sum(dim=-1, keepdim=True).clamp(min=self.smallest_sum)
        return value / total, index


class SigmoidRouting(Routing):
    """Chosen by sigmoid plus a correction among the best groups of experts (GLM-4-MoE).

    Args:
        weight: Router rows, shape (E, D).
        correction: Added to the scores for the choice, shape (E,).
        top_k: Experts a token.
        groups: Groups of experts, side by side; E is a multiple of it.
        chosen_groups: Groups that a token's experts come from: those with the largest sum of
            their best two.
        normalize: Whether the k scores are divided by their sum.
        scale: What they are multiplied by in the end.
    """

    correction: Tensor
    group_of: Tensor

    def __init__(
        self,
        weight: Tensor,
        correction: Tensor,
        *,
        top_k: int,
        groups: int,
        chosen_groups: int,
        normalize: bool,
        scale: float,
    ) -> None:
        super().__init__(weight, top_k=top_k)
        self.groups, self.chosen_groups = groups, chosen_groups
        self.normalize, self.scale = normalize, scale
        self.register_buffer("correction", correction.detach().clone())
        members = torch.arange(self.num_experts) // (self.num_experts // groups)
        self.register_buffer("group_of", members, persistent=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and ids of the chosen experts, each (…, k)."""
        scores = self.logits(hidden_states).sigmoid()
        choice = self._among_best_groups(scores + self.correction)
        _, index = torch.topk(choice, self.top_k, dim=-1)
        value = torch.gather(scores, -1, index)
        if self.normalize:
            value = value / (value.sum(dim=-1, keepdim=True) + 1e-20)
        return value * self.scale, index

    def _among_best_groups(self, choice: Tensor) -> Tensor:
        """Return what to choose by, (…, E), far below everything outside of the best groups."""
        if self.chosen_groups == self.groups:
            return choice
        best_two, _ = torch.topk(torch.unflatten(choice, -1, (self.groups, -1)), 2, dim=-1)
        _, best = torch.topk(best_two.sum(dim=-1), self.chosen_groups, dim=-1)  # (…, G')
        inside = (best.unsqueeze(-1) == self.group_of).sum(dim=-2)  # (…, E), 0 or 1
        return choice + (inside.to(choice.dtype) - 1.0) * _MASKED
