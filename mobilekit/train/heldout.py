"""Held-out figures of a language model: its loss, and how evenly its experts are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilekit.core import console
from mobilekit.data.text import token_windows

from .forward import forward_with_routing
from .objectives import counted_predictions, expert_load

__all__ = ["HeldoutResult", "heldout_loss", "measure_heldout"]


@dataclass(frozen=True)
class HeldoutResult:
    """Sums over one text, and the expert load if the model routes."""

    nats: float
    tokens: int
    num_bytes: int
    expert_load: tuple[tuple[float, ...], ...]  # a layer, an expert: share of routed tokens

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


def measure_heldout(
    model: nn.Module, tokenizer: Any, text: str, *, length: int, batch_size: int = 8
) -> HeldoutResult:
    """Predict every token of ``text`` once, in windows that each start after an end-of-text token.

    Args:
        model: A causal language model of transformers, moved nowhere.
        tokenizer: Its tokenizer, with an end-of-text token.
        text: The held-out text.
        length: Text tokens in a window.
        batch_size: Windows at once.
    """
    windows = token_windows(tokenizer, text, length=length, prefix=tokenizer.eos_token_id)
    nats, counts = 0.0, None
    for batch in _batches(windows, batch_size):
        routed, batch_nats = _forward(model, batch)
        nats += batch_nats
        here = [_counts(logits, model) for logits in routed]
        counts = here if counts is None else [a + b for a, b in zip(counts, here, strict=True)]
    tokens = sum(len(window) - 1 for window in windows)
    load = tuple(tuple((count / count.sum()).tolist()) for count in counts or ())
    return HeldoutResult(nats, tokens, len(text.encode("utf-8")), load)


def heldout_loss(
    model: nn.Module,
    windows: Tensor,
    *,
    padding_id: int | None = None,
    batch_size: int = 8,
    description: str = "held-out loss",
) -> float:
    """Mean nats a token over windows of ids.

    Args:
        model: A causal language model of transformers, moved nowhere.
        windows: Shape (N, S).
        padding_id: Id of tokens that are neither predicted nor predicted from, if there are any.
        batch_size: Windows at once.
        description: For the progress.
    """
    nats = 0.0
    counted = counted_predictions(windows, padding_id)
    total = windows.shape[0] * (windows.shape[1] - 1) if counted is None else int(counted.sum())
    with console.progress(len(windows), description, announce=True) as bar:
        for batch in torch.split(windows, batch_size):
            nats += _forward(model, batch, padding_id)[1]
            bar.advance(len(batch))
    return nats / max(1, total)


def _batches(windows: list[list[int]], batch_size: int) -> list[Tensor]:
    # The last window is usually shorter; it goes alone, so that nothing is padded.
    full = [window for window in windows if len(window) == len(windows[0])]
    rest = windows[len(full) :]
    batches = list(torch.split(torch.tensor(full), batch_size)) if full else []
    return [*batches, *(torch.tensor([window]) for window in rest)]


@torch.no_grad()
def _forward(
    model: nn.Module, input_ids: Tensor, padding_id: int | None = None
) -> tuple[tuple[Tensor, ...], float]:
    was_training = model.training
    model.eval()
    input_ids = input_ids.to(next(model.parameters()).device)
    logits, router_logits = forward_with_routing(model, input_ids)
    model.train(was_training)
    # float64, because tens of thousands of terms are added up
    flat_logits = logits[:, :-1].double().flatten(0, 1)
    targets = input_ids[:, 1:].flatten()
    counted = counted_predictions(input_ids, padding_id)
    if counted is not None:
        flat_logits, targets = flat_logits[counted.flatten()], targets[counted.flatten()]
    nats = float(functional.cross_entropy(flat_logits, targets, reduction="sum"))
    return router_logits, nats


def _counts(router_logits: Tensor, model: Any) -> Tensor:
    top_k = int(model.config.num_experts_per_tok)
    return (expert_load(router_logits, top_k) * router_logits.shape[0] * top_k).round().cpu()
