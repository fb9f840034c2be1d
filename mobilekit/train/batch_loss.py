"""The loss of a batch, in parts: over the ranks, and on each in turn, to save memory.

However a batch is cut, the parts' losses add up to its loss: means are over the whole batch, and
so is the load of a router's experts, which is no sum over tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .config import RecoverConfig
from .corpus import Corpus
from .forward import forward_with_routing, routes
from .objectives import (
    balance_loss,
    counted_predictions,
    distillation_loss,
    expert_load,
    is_text,
    next_token_loss,
)
from .ranks import Ranks

__all__ = ["BatchLoss", "arithmetic"]


def arithmetic(model: nn.Module, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the model's products are computed in a precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)


class BatchLoss:
    """Gives the losses of this rank's parts of a step's batch.

    Args:
        model: The student.
        teacher: The dense model where the objective has ``distill``.
        corpus: What batches are drawn from.
        config: The settings.
        ranks: The processes that share a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        corpus: Corpus,
        config: RecoverConfig,
        ranks: Ranks,
    ) -> None:
        self.model, self.teacher, self.corpus = model, teacher, corpus
        self.config, self.ranks = config, ranks
        self.padding_id = corpus.padding_id
        self.device = next(model.parameters()).device
        self.balances = routes(model) and config.balance_weight > 0.0
        self.parts = config.gradient_accumulation * ranks.size

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield a scalar for each part in turn; those of all ranks sum up to the batch's loss."""
        # every rank draws the whole batch: ids cost nothing, and so all of them know its counts
        batch = self.corpus.batch(self.config.batch_size, generator)
        own = batch.chunk(self.ranks.size)[self.ranks.rank]
        parts = [part.to(self.device) for part in own.chunk(self.config.gradient_accumulation)]
        loads = self._loads(parts) if self.balances and len(parts) > 1 else None
        for part in parts:
            with arithmetic(self.model, self.config.precision):
                loss = self._loss(part, batch, loads)
            yield loss

    def _loss(self, part: Tensor, batch: Tensor, loads: list[Tensor] | None) -> Tensor:
        """Return what a part adds to the weighted sum of the objectives and the balance."""
        config = self.config
        logits, router_logits = forward_with_routing(self.model, part)
        loss = logits.new_zeros((), dtype=torch.float32)
        both = len(config.objective) == 2
        if "next_token" in config.objective:
            weight = 1.0 - config.distill_weight if both else 1.0
            counted = counted_predictions(part, self.padding_id)
            weight *= self._share(counted, counted_predictions(batch, self.padding_id))
            if weight:
                loss = loss + weight * next_token_loss(logits, part, counted)
        if self.teacher is not None:
            with torch.no_grad():
                target, _ = forward_with_routing(self.teacher, part)
            weight = config.distill_weight if both else 1.0
            counted = is_text(part, self.padding_id)
            weight *= self._share(counted, is_text(batch, self.padding_id))
            if weight:
                loss = loss + weight * distillation_loss(
                    logits, target, config.temperature, counted
                )
        if router_logits and self.balances:
            if loads is None and self.ranks.size > 1:
                loads = self._over_ranks([expert_load(x, self._top_k) for x in router_logits])
            balance = balance_loss(router_logits, self._top_k, loads)
            loss = loss + config.balance_weight / self.parts * balance
        # padding alone has no loss, but its gradient must meet that of the other ranks
        return loss if loss.requires_grad else loss + 0.0 * logits.float().sum()

    def _share(self, part: Tensor | None, batch: Tensor | None) -> float:
        """Return a part's share of what counts in the batch."""
        if part is None or batch is None:
            return 1 / self.parts
        return int(part.sum()) / max(1, int(batch.sum()))

    @property
    def _top_k(self) -> int:
        model: Any = self.model
        return int(model.config.num_experts_per_tok)

    @torch.no_grad()
    def _loads(self, parts: list[Tensor]) -> list[Tensor]:
        """Return the load of each layer's experts over the batch, which takes a pass of its own."""
        loads: list[Tensor] = []
        for part in parts:
            with arithmetic(self.model, self.config.precision):
                _, routed = forward_with_routing(self.model, part)
            here = [expert_load(logits, self._top_k) / len(parts) for logits in routed]
            loads = [a + b for a, b in zip(loads, here, strict=True)] if loads else here
        return self._over_ranks(loads)

    def _over_ranks(self, loads: list[Tensor]) -> list[Tensor]:
        return [self.ranks.sum_(load) / self.ranks.size for load in loads]
