"""KL divergence: by hand, its direction, zero for the model itself; what is drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mobilekit.compress.darwinlm import fitness
from mobilekit.compress.darwinlm.fitness import Teacher, drawn, mean_kl


def test_two_positions_of_three_classes_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.125, 0.75, 0.125], [0.1, 0.1, 0.8]], dtype=torch.float64)
    # 0.5 ln 4 − 0.25 ln 3 + 0.25 ln 2;  0.8 ln 8 − 0.1 ln 8
    first = 1.25 * 0.6931471805599453 - 0.25 * 1.0986122886681098
    expected = (first + 0.7 * 2.0794415416798357) / 2
    assert mean_kl(p.log(), q.log() + 3.0) == pytest.approx(expected, rel=1e-6)
    assert mean_kl(q.log(), p.log()) != pytest.approx(expected, rel=1e-2)
    assert mean_kl(p.log(), p.log() - 7.0) == pytest.approx(0.0, abs=1e-7)


def test_many_positions_equal_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "_ROWS", 7)
    p, q = torch.randn(2, 3, 11, 50), torch.randn(2, 3, 11, 50)
    log_p, log_q = (x.double().log_softmax(-1).view(-1, 50) for x in (p, q))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert mean_kl(p, q) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_divergence_leaves_the_last_position_out(
    tiny: Callable[[str], nn.Module], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "_KEPT", kept)
    model = tiny("llama")
    rows = torch.arange(9, 33).reshape(2, 12)
    teacher = Teacher(model, rows)
    assert teacher.divergence(model) == pytest.approx(0.0, abs=1e-7)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        expected = mean_kl(
            model(input_ids=rows).logits[:, :-1], other(input_ids=rows).logits[:, :-1]
        )
    assert teacher.divergence(other) == pytest.approx(expected, rel=1e-5)
    assert expected > 0


def test_rows_are_drawn_without_repeats_and_by_the_generator_alone() -> None:
    pool = torch.arange(40).view(10, 4)
    first = drawn(pool, 17, torch.Generator().manual_seed(1))
    assert first.shape == (5, 4)
    assert len({row[0].item() for row in first}) == 5
    assert torch.equal(first, drawn(pool, 17, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, drawn(pool, 17, torch.Generator().manual_seed(2)))
    assert len(drawn(pool, 1000, torch.Generator())) == 10
