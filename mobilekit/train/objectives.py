"""Losses that training here is made of; all are means in nats, lower is better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "balance_loss",
    "counted_predictions",
    "distillation_loss",
    "expert_load",
    "is_text",
    "next_token_loss",
]


def is_text(input_ids: Tensor, padding_id: int | None) -> Tensor | None:
    """Return which tokens are no padding, in the shape of the ids, bool; ``None`` for all."""
    return None if padding_id is None else input_ids != padding_id


def counted_predictions(input_ids: Tensor, padding_id: int | None) -> Tensor | None:
    """Return which next tokens count, shape (B, S - 1), bool; ``None`` for all of them.

    Padding is neither predicted nor predicted from.

    Args:
        input_ids: Shape (B, S).
        padding_id: The padding's id; ``None`` where there is none.
    """
    text = is_text(input_ids, padding_id)
    return None if text is None else text[:, 1:] & text[:, :-1]


def next_token_loss(logits: Tensor, input_ids: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of each token given those before it, a scalar in float32.

    Args:
        logits: Shape (B, S, V).
        input_ids: Shape (B, S).
        counted: Which predictions count, shape (B, S - 1), bool; all of them where ``None``.
    """
    predicted, targets = logits[:, :-1].float().flatten(0, 1), input_ids[:, 1:].flatten()
    if counted is not None:
        predicted, targets = predicted[counted.flatten()], targets[counted.flatten()]
    return functional.cross_entropy(predicted, targets)


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Mean KL(teacher ‖ student) over positions, times temperature squared, in float32.

    Args:
        logits: The student's, shape (B, S, V).
        teacher_logits: The same shape; no gradient goes there.
        temperature: Above 0; higher looks more at the unlikely tokens.
        counted: Which positions count, shape (B, S), bool; all of them where ``None``.

    Source: Hinton et al. 2015, section 2: the square keeps the size of the gradient.
    """
    if counted is not None:
        logits, teacher_logits = logits[counted], teacher_logits[counted]
    student = functional.log_softmax(logits.float().flatten(0, -2) / temperature, dim=-1)
    teacher = functional.log_softmax(
        teacher_logits.detach().float().flatten(0, -2) / temperature, dim=-1
    )
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def balance_loss(
    router_logits: Sequence[Tensor],
    num_experts_per_tok: int,
    loads: Sequence[Tensor] | None = None,
) -> Tensor:
    """How unevenly each layer uses its experts, averaged over layers, in float32.

    It is ``num_experts_per_tok`` where every layer is balanced. Transformers pools all layers
    before comparing, so that one layer's idle expert hides behind another layer's busy one;
    here each layer counts alone, and layers may differ in their number of experts.

    Args:
        router_logits: One tensor a layer, shape (B·S, E).
        num_experts_per_tok: Experts a token goes to.
        loads: A layer's :func:`expert_load` over a batch of which these tokens are a part; the
            weighted mean over its parts is then the loss of the whole batch.

    Source: Switch Transformers, eq. (4), for top-k as in transformers.
    """
    losses = []
    for layer, logits in enumerate(router_logits):
        num_experts = logits.shape[-1]
        chosen = min(num_experts_per_tok, num_experts)
        load = expert_load(logits, num_experts_per_tok) if loads is None else loads[layer]
        share = load * chosen  # (E,)
        probability = logits.float().softmax(dim=-1).mean(dim=0)  # (E,)
        losses.append(num_experts * (share * probability).sum())
    return torch.stack(losses).mean()


def expert_load(router_logits: Tensor, num_experts_per_tok: int) -> Tensor:
    """Share of the routed tokens that each expert gets, shape (E,), float32, sums to 1."""
    num_experts = router_logits.shape[-1]
    chosen = router_logits.topk(min(num_experts_per_tok, num_experts), dim=-1).indices
    return torch.bincount(chosen.flatten(), minlength=num_experts).float() / chosen.numel()
