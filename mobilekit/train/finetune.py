"""The short training that a search gives a candidate before it compares it with others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .objectives import next_token_loss

__all__ = ["finetune"]


def finetune(model: nn.Module, batches: Sequence[Tensor], learning_rate: float = 1e-5) -> float:
    """Train every parameter of ``model`` in place: one pass, one sequence a step, silently.

    A fresh AdamW with torch's own defaults and no schedule. The model is in evaluation mode
    meanwhile, so that nothing is drawn: the same model and batches give the same weights.

    Args:
        model: A causal language model of transformers.
        batches: Token ids, each of shape (S,), or (B, S), whose rows are B steps; int64, S >= 2.
        learning_rate: Of every step, above 0.

    Returns:
        The loss of the last step before its update, in nats a token; NaN or infinite where the
        training diverged, NaN where there is no sequence.

    Source: DarwinLM, training-aware selection: AdamW at 1e-5, a batch of one sequence.
    """
    trained: Any = model
    device = next(model.parameters()).device
    sequences = [row for batch in batches for row in batch.reshape(-1, batch.shape[-1])]
    requires_grad = [(p, p.requires_grad) for p in model.parameters()]
    was_training = model.training
    loss = torch.tensor(math.nan)
    model.eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    try:
        with torch.enable_grad():
            for sequence in sequences:
                input_ids = sequence.to(device).unsqueeze(0)  # (1, S)
                logits = trained(input_ids=input_ids, use_cache=False).logits
                loss = next_token_loss(logits, input_ids)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
        model.train(was_training)
        for parameter, was in requires_grad:
            parameter.requires_grad_(was)
    return float(loss.detach())
