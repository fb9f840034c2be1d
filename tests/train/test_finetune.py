import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mobilekit.train.finetune import finetune


def sequences(count: int, length: int = 12) -> Tensor:
    return torch.randint(256, (count, length), generator=torch.Generator().manual_seed(7))


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def written_out(model: Any, rows: Tensor, learning_rate: float) -> float:
    """The same, as one would write it by hand: AdamW spelt out, in the order of its formula."""
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    loss = torch.tensor(math.nan)
    for step, row in enumerate(rows, start=1):
        logits = model(input_ids=row[None]).logits[0, :-1]
        loss = functional.cross_entropy(logits, row[1:])
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, grad, m, v in zip(parameters, grads, first, second, strict=True):
                p.mul_(1 - learning_rate * 0.01)
                m.mul_(0.9).add_(grad, alpha=0.1)
                v.mul_(0.999).add_(grad.square(), alpha=0.001)
                scale = (v / (1 - 0.999**step)).sqrt() + 1e-8
                p.sub_(learning_rate * (m / (1 - 0.9**step)) / scale)
    return float(loss.detach())


def test_it_is_adamw_on_one_sequence_a_step(tiny_qwen3: nn.Module):
    ours, expected = copy.deepcopy(tiny_qwen3), copy.deepcopy(tiny_qwen3)
    rows = sequences(5)
    last = finetune(ours, [rows[:3], rows[3], rows[4:]], learning_rate=1e-3)
    assert last == pytest.approx(written_out(expected, rows, 1e-3), abs=1e-5)
    for ours_p, p in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours_p, p, atol=1e-5, rtol=0)
    assert not equal(weights(ours), weights(tiny_qwen3))


def test_it_repeats_is_silent_and_leaves_no_trace(
    tiny_qwen3: nn.Module, capsys: pytest.CaptureFixture[str]
):
    models = [copy.deepcopy(tiny_qwen3) for _ in range(2)]
    models[0].config.attention_dropout = 0.3  # type: ignore[union-attr]
    models[0].model.embed_tokens.requires_grad_(False)  # type: ignore[union-attr, operator]
    state = torch.random.get_rng_state()
    with torch.no_grad():
        losses = [finetune(model, [sequences(2)]) for model in models]
    assert losses[0] == losses[1]
    assert equal(weights(models[0]), weights(models[1]))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not models[0].training
    assert not models[0].model.embed_tokens.weight.requires_grad  # type: ignore[union-attr]
    assert all(p.grad is None for model in models for p in model.parameters())
    assert capsys.readouterr() == ("", "")


def test_what_diverges_says_nan_and_no_batch_trains_nothing(tiny_qwen3: nn.Module):
    model = copy.deepcopy(tiny_qwen3)
    assert math.isnan(finetune(model, []))
    assert equal(weights(model), weights(tiny_qwen3))
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    assert math.isnan(finetune(model, [sequences(2)]))


def test_the_loss_falls_on_what_repeats(tiny_qwen3: nn.Module):
    row = sequences(1)
    once = finetune(copy.deepcopy(tiny_qwen3), [row], learning_rate=1e-3)
    assert finetune(copy.deepcopy(tiny_qwen3), [row] * 20, learning_rate=1e-3) < once - 0.5
