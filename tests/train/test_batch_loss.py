"""However a batch is cut, its parts' losses and gradients add up to those of the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilekit.models import load
from mobilekit.train.batch_loss import BatchLoss
from mobilekit.train.config import RecoverConfig
from mobilekit.train.corpus import Corpus
from mobilekit.train.heldout import heldout_loss
from mobilekit.train.objectives import (
    counted_predictions,
    distillation_loss,
    next_token_loss,
)
from mobilekit.train.ranks import ALONE, Ranks

PADDING = 9
IDS = torch.randint(10, (600,), generator=torch.Generator().manual_seed(2))


def corpus(*, is_padded: bool) -> Corpus:
    ids = IDS.clone()
    if is_padded:
        ids[100:140] = PADDING
    else:
        ids[ids == PADDING] = 0
    windows = ids[:64].view(4, 16)
    return Corpus(ids.numpy(), windows, 16, PADDING if is_padded else None, "")


class Share(Ranks):
    """Ranks of which this process is one, as far as cutting goes: nothing is sent."""

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor * self.size


def losses_and_gradients(
    model: nn.Module,
    teacher: nn.Module,
    config: RecoverConfig,
    ranks: Ranks = ALONE,
    *,
    is_padded: bool = False,
) -> tuple[float, dict[str, Tensor]]:
    student = copy.deepcopy(model).train()
    losses = BatchLoss(student, teacher, corpus(is_padded=is_padded), config, ranks)
    total = 0.0
    for loss in losses(0, torch.Generator().manual_seed(0)):
        total += float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
    return total, {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_padded", [False, True], ids=["text", "padded"])
@pytest.mark.parametrize("name", ["qwen3", "olmoe-uneven", "mamba2-uneven", "gemma2"])
def test_parts_of_a_batch_add_up_to_it(
    name: str, is_padded: bool, checkpoint: Callable[[str], Path]
) -> None:
    model = load(checkpoint(name), device="cpu")
    teacher = load(checkpoint(name.removesuffix("-uneven")), device="cpu")
    config = RecoverConfig(batch_size=12, sequence_length=16, balance_weight=0.5)
    whole, expected = losses_and_gradients(model, teacher, config, is_padded=is_padded)
    for parts in (2, 3, 12):
        cut = RecoverConfig(**{**config.model_dump(), "gradient_accumulation": parts})
        loss, gradients = losses_and_gradients(model, teacher, cut, is_padded=is_padded)
        assert loss == pytest.approx(whole, abs=1e-6)
        assert gradients.keys() == expected.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[key], atol=1e-6, rtol=1e-5)


def test_the_shares_of_the_ranks_add_up_too(checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint("qwen3"), device="cpu")
    config = RecoverConfig(batch_size=12, sequence_length=16, gradient_accumulation=2)
    alone = RecoverConfig(batch_size=12, sequence_length=16)
    whole, expected = losses_and_gradients(model, model, alone, is_padded=True)
    shares = [
        losses_and_gradients(model, model, config, Share(rank, 3), is_padded=True)
        for rank in range(3)
    ]
    assert sum(loss for loss, _ in shares) == pytest.approx(whole, abs=1e-6)
    for key, gradient in expected.items():
        added = sum((gradients[key] for _, gradients in shares), torch.zeros(()))
        torch.testing.assert_close(added, gradient, atol=1e-6, rtol=1e-5)


def test_padding_is_neither_predicted_nor_predicted_from() -> None:
    ids = torch.tensor([[1, 2, PADDING, PADDING, 3, 4], [5, 6, 7, 8, 1, 2]])
    counted = counted_predictions(ids, PADDING)
    assert counted is not None
    assert counted.tolist() == [[True, False, False, False, True], [True] * 5]
    assert counted_predictions(ids, None) is None
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 2, 6, 10, generator=generator)
    pairs = [(0, 0), (0, 4), *((1, i) for i in range(5))]
    expected = [functional.cross_entropy(logits[b, s], ids[b, s + 1]) for b, s in pairs]
    loss = next_token_loss(logits, ids, counted)
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)
    kept = ids != PADDING
    p, q = taught[kept].softmax(-1), logits[kept].log_softmax(-1)
    divergence = (p * (p.log() - q)).sum(-1).mean()
    assert float(distillation_loss(logits, taught, 1.0, kept)) == pytest.approx(
        float(divergence), abs=1e-6
    )


def test_heldout_loss_leaves_padding_out(checkpoint: Callable[[str], Path]) -> None:
    model: Any = load(checkpoint("qwen3"), device="cpu")
    windows = corpus(is_padded=False).windows.clone()
    windows[1, 10:] = PADDING
    nats, count = 0.0, 0
    with torch.no_grad():
        logits = model(input_ids=windows).logits.double().log_softmax(-1)
    for b, s in np.ndindex(4, 15):
        if PADDING not in (int(windows[b, s]), int(windows[b, s + 1])):
            nats, count = nats - float(logits[b, s, windows[b, s + 1]]), count + 1
    assert heldout_loss(model, windows, padding_id=PADDING) == pytest.approx(nats / count)
    assert count < 60


def test_a_batch_of_nothing_but_padding_has_no_loss(checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint("qwen3"), device="cpu")
    only = replace(corpus(is_padded=True), stream=np.full(64, PADDING))
    config = RecoverConfig(batch_size=2, sequence_length=16)
    (loss,) = BatchLoss(model, model, only, config, ALONE)(0, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0


def test_bfloat16_computes_in_bfloat16_and_learns_in_float32(
    checkpoint: Callable[[str], Path],
) -> None:
    model = load(checkpoint("qwen3"), device="cpu")
    config = RecoverConfig(batch_size=4, sequence_length=16, objective=["next_token"])
    half = RecoverConfig(**{**config.model_dump(), "precision": "bfloat16"})
    exact, expected = losses_and_gradients(model, model, config)
    rounded, gradients = losses_and_gradients(model, model, half)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    for key, gradient in gradients.items():
        similar = functional.cosine_similarity(gradient.flatten(), expected[key].flatten(), dim=0)
        assert float(similar) > 0.98, key
