"""Optimal brain surgeon against least squares, the plain algorithm, and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobilekit.compress.obs import SecondMoments, damped, inverse, remove_by_score, remove_units
from mobilekit.core.errors import InvalidInputError

from .plain import columns_of, plain_removal


def layer(
    rows: int, columns: int, seed: int = 0, samples: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs that are correlated, and their H, in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    x = torch.randn(samples or 4 * columns, columns, dtype=torch.float64, generator=generator)
    x = x @ (mixing / columns**0.5 + 0.3 * torch.eye(columns, dtype=torch.float64))
    return weight, x, 2.0 / len(x) * x.T @ x


def realised(weight: Tensor, left: Tensor, kept: list[int], hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ) of a layer of which some columns are left."""
    change = weight.clone()
    change[:, kept] -= left
    return float((change @ hessian * change).sum())


@pytest.mark.parametrize("width", [1, 4])
def test_repair_is_the_least_squares_solution(width: int) -> None:
    weight, x, hessian = layer(6, 24)
    removal = remove_units(
        weight, hessian, width=width, removed=[0, 1, 2, 24 // width - 1], damping=1e-12
    )
    for level in removal.levels[1:]:
        assert level.weight is not None
        kept = columns_of(level.kept, width)
        expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
        torch.testing.assert_close(level.weight, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("width", "runs"), [(1, 1), (4, 1), (4, 3), (1, 6)])
@pytest.mark.parametrize("damping", [1e-2, 1e-6])
def test_equals_the_plain_algorithm(width: int, runs: int, damping: float) -> None:
    weight, _, hessian = layer(5, 24 if width == 4 else 150, seed=1)
    count = weight.shape[1] // width
    removed = sorted({0, 1, count // 3, count // 2, count - 1})
    found = remove_units(weight, hessian, width=width, removed=removed, runs=runs, damping=damping)
    _, inverted = inverse(hessian, damping, "it")
    order, weights, costs = plain_removal(weight, inverted, width, removed[-1], runs)
    assert list(found.order) == order
    for level, count_ in zip(found.levels[1:], removed[1:], strict=True):
        assert level.weight is not None
        expected = weights[count_ - 1][:, columns_of(level.kept, width)]
        torch.testing.assert_close(level.weight, expected, rtol=1e-8, atol=1e-9)
        assert level.error == pytest.approx(sum(costs[:count_]), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    units=st.integers(2, 12),
    width=st.integers(1, 5),
    rows=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_levels_are_nested_and_errors_are_what_was_realised(
    units: int, width: int, rows: int, seed: int
) -> None:
    weight, _, hessian = layer(rows, units * width, seed)
    removal = remove_units(weight, hessian, width=width, removed=list(range(units + 1)))
    with_damping = damped(hessian, 1e-2)
    before: set[int] = set(range(units))
    errors = [level.error for level in removal.levels]
    assert errors == sorted(errors)
    assert sorted(removal.order) == list(range(units))
    for number, level in enumerate(removal.levels):
        assert set(level.kept) <= before
        assert len(level.kept) == units - number
        assert set(level.kept) == set(range(units)) - set(removal.order[:number])
        before = set(level.kept)
        if level.weight is not None:
            kept = columns_of(level.kept, width)
            error = realised(weight, level.weight, kept, with_damping)
            assert level.error == pytest.approx(error, rel=1e-7, abs=1e-9)
    assert removal.levels[0].error == 0.0
    assert removal.levels[-1].error == removal.total
    assert removal.total == pytest.approx(float((weight @ with_damping * weight).sum()), rel=1e-12)


def test_one_at_a_time_equals_all_at_once() -> None:
    weight, x, hessian = layer(6, 20, seed=3)
    removal = remove_units(weight, hessian, width=1, removed=[0, 4], damping=1e-9)
    level = removal.levels[1]
    gone = sorted(removal.order)
    _, inverted = inverse(hessian, 1e-9, "it")
    block = torch.linalg.inv(inverted[gone][:, gone])
    joint = weight - weight[:, gone] @ block @ inverted[gone]
    assert level.weight is not None
    torch.testing.assert_close(level.weight, joint[:, list(level.kept)], rtol=1e-9, atol=1e-10)
    cost = float((weight[:, gone] @ block * weight[:, gone]).sum())
    assert level.error == pytest.approx(cost, rel=1e-9)


def test_greedy_is_never_better_than_brute_force() -> None:
    excess = []
    for seed in range(30):
        weight, x, hessian = layer(6, 8, seed, samples=64)
        matrix = damped(hessian, 1e-2)
        level = remove_units(weight, hessian, width=1, removed=[0, 3]).levels[1]
        best = math.inf
        for kept in itertools.combinations(range(8), 5):
            k = list(kept)
            solved = weight @ matrix[:, k] @ torch.linalg.inv(matrix[k][:, k])
            best = min(best, realised(weight, solved, k, matrix))
        assert level.error >= best * (1 - 1e-9)
        excess.append(level.error / best)
    assert min(excess) == pytest.approx(1.0)  # it finds the optimum at times


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize("width", [1, 4])
def test_repair_never_hurts(score: str, width: int) -> None:
    weight, _, hessian = layer(6, 24, seed=5)
    plain = remove_by_score(weight, hessian, score, width=width, removed=[0, 2, 4])  # type: ignore[arg-type]
    for level in plain.levels[1:]:
        kept = columns_of(level.kept, width)
        assert level.weight is not None
        assert torch.equal(level.weight, weight[:, kept])
        assert level.error == pytest.approx(realised(weight, level.weight, kept, hessian))
        solved = weight @ hessian[:, kept] @ torch.linalg.inv(hessian[kept][:, kept])
        assert realised(weight, solved, kept, hessian) <= level.error + 1e-12


def test_scores_of_the_baselines_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.1], [0.0, 2.0, 0.0, 0.1]], dtype=torch.float64)
    hessian = torch.diag(torch.tensor([1.0, 1.0, 0.01, 900.0], dtype=torch.float64))
    # Σ W²: 1, 8, 9, 0.02; times H_jj: 1, 8, 0.09, 18
    magnitude = remove_by_score(weight, hessian, "magnitude", width=1, removed=[0, 4])
    wanda = remove_by_score(weight, hessian, "wanda", width=1, removed=[0, 4])
    assert magnitude.order == (3, 0, 1, 2)
    assert wanda.order == (2, 0, 1, 3)
    assert wanda.total == pytest.approx(27.09)
    pairs = remove_by_score(weight, hessian, "wanda", width=2, removed=[0, 1])
    assert pairs.order == (0,)


@pytest.mark.parametrize("width", [1, 8])
def test_runs_lose_one_unit_each_a_round(width: int) -> None:
    weight, _, hessian = layer(4, 12 * width, seed=7)
    removal = remove_units(weight, hessian, width=width, removed=[0, 3, 6, 9], runs=3)
    for number, level in enumerate(removal.levels):
        left = [sum(unit // 4 == run for unit in level.kept) for run in range(3)]
        assert left == [4 - number] * 3


def test_dead_inputs_are_no_obstacle() -> None:
    weight, x, _ = layer(5, 16)
    x[:, [2, 9]] = 0.0
    hessian = 2.0 / len(x) * x.T @ x
    removal = remove_units(weight, hessian, width=1, removed=[0, 2, 8], damping=1e-9)
    assert set(removal.order[:2]) == {2, 9}
    assert removal.levels[1].error == pytest.approx(0.0, abs=1e-9)
    level = removal.levels[2]
    kept = list(level.kept)
    expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    assert level.weight is not None
    torch.testing.assert_close(level.weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_snapshots_have_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    weight, _, hessian = layer(5, 16)
    exact = remove_units(weight.to(dtype).double(), hessian, width=2, removed=[0, 3])
    found = remove_units(weight.to(dtype), hessian, width=2, removed=[0, 3])
    assert found.levels[1].weight is not None
    assert exact.levels[1].weight is not None
    assert found.levels[1].weight.dtype == dtype
    assert torch.equal(found.levels[1].weight, exact.levels[1].weight.to(dtype))
    assert found.order == exact.order


def test_singular_hessian_raises_the_damping_and_then_gives_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weight, x, _ = layer(4, 12)
    x[:, 1] = x[:, 0]
    hessian = x.T @ x
    hessian[3, 3] = -hessian.diagonal().mean() * 2e-4  # as rounding may leave it
    hessian[3, :3], hessian[:3, 3], hessian[3, 4:], hessian[4:, 3] = 0.0, 0.0, 0.0, 0.0
    remove_units(weight, hessian, width=1, removed=[0, 2], damping=1e-4, name="the third layer")
    assert "the third layer: the damping was raised to 0.001" in capsys.readouterr().err
    hessian[3, 3] *= 1e6
    with pytest.raises(InvalidInputError, match="the Hessian of the third layer"):
        remove_units(weight, hessian, width=1, removed=[0, 2], name="the third layer")


@pytest.mark.parametrize(
    ("removed", "width"), [([0, 2, 2], 1), ([1, 2], 1), ([0, 13], 1), ([], 1), ([0], 5)]
)
def test_bad_requests_are_refused(removed: list[int], width: int) -> None:
    weight, _, hessian = layer(4, 12)
    with pytest.raises(ValueError, match="expected"):
        remove_units(weight, hessian, width=width, removed=removed)


def test_moments_are_those_of_all_inputs_together() -> None:
    inputs = [torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(1, 4, 8)]
    moments = SecondMoments(8)
    for part in inputs:
        moments.add(part)
    rows = torch.cat([part.reshape(-1, 8) for part in inputs]).double()
    expected = 2.0 / len(rows) * rows.T @ rows
    torch.testing.assert_close(moments.matrix(), expected, rtol=1e-5, atol=1e-6)
    assert moments.samples == len(rows) == 17


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    inputs = torch.zeros(3, 4)
    inputs[1, 2] = value
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        SecondMoments(4).add(inputs)


def test_fewer_tokens_than_columns_are_refused() -> None:
    moments = SecondMoments(8)
    moments.add(torch.randn(7, 8))
    with pytest.raises(InvalidInputError, match="7 calibration tokens cannot tell 8 columns"):
        moments.matrix()
