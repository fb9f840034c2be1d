"""Four-bit groups against the usual scale and an exhaustive search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mobilekit.export import int4
from mobilekit.export.int4 import round_groups
from torch import Tensor

from mobilekit.core.errors import InvalidInputError

SIGNED = pytest.mark.parametrize("is_signed", [False, True])


def _read(codes: Tensor, scales: Tensor) -> Tensor:
    return (codes.double() * scales.double()[..., None]).flatten(1)


def _error(weight: Tensor, scale: Tensor) -> Tensor:
    """Squared error of one group (L,) at each of some scales (T, 1), with its best codes."""
    codes = (weight / scale).round().clamp(-8, 7)
    return ((codes * scale - weight) ** 2).sum(-1)


@SIGNED
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 4),
    depth=st.integers(1, 80),
    group=st.sampled_from([32, 64]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_codes_are_the_nearest_levels_and_never_worse_than_the_usual_scale(
    is_signed: bool, rows: int, depth: int, group: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, depth, generator=generator)
    codes, scales = round_groups(weight, group, dtype, is_signed=is_signed)
    count = -(-depth // group)
    assert codes.shape == (rows, count, group)
    assert codes.dtype == torch.int8
    assert (scales.shape, scales.dtype) == ((rows, count), dtype)
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert is_signed or (scales > 0).all()

    padded = torch.nn.functional.pad(weight, (0, -depth % group)).double()
    groups = padded.view(rows, count, group)
    steps = scales.double()[..., None]
    nearest = (groups / steps).clamp(-8, 7)
    assert ((codes.double() - nearest).abs() <= 0.5 + 1e-5).all()
    found = ((codes.double() * steps - groups) ** 2).sum(-1)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    usual = (largest if is_signed else largest.abs() * 8 / 7).to(dtype).double()
    if (usual != 0).all():
        plain = (((groups / usual).round().clamp(-8, 7) * usual - groups) ** 2).sum(-1)
        assert (found <= plain * (1 + 1e-5)).all()


@SIGNED
def test_the_search_comes_close_to_an_exhaustive_one(is_signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, generator=generator)
    codes, scales = round_groups(weight, 32, torch.float16, is_signed=is_signed)
    found = ((_read(codes, scales) - weight.double()) ** 2).sum(-1)
    steps = torch.linspace(0.05, 0.6, 2000, dtype=torch.float64)[:, None]
    steps = torch.cat([steps, -steps]) if is_signed else steps
    best = torch.stack([_error(row, steps).min() for row in weight.double()])
    assert (found.sum() / best.sum()).item() < 1.03


@SIGNED
def test_a_weight_on_the_grid_is_kept_exactly(is_signed: bool) -> None:
    grid = torch.arange(-8, 8).repeat(2, 2).float() * 0.25
    codes, scales = round_groups(grid, 32, torch.bfloat16, is_signed=is_signed)
    assert torch.equal(_read(codes, scales).float(), grid)


def test_a_group_of_zeros_has_scale_one() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 40] = 1.0
    codes, scales = round_groups(weight, 32, torch.float16, is_signed=False)
    assert scales[0, 0] == 1
    assert not codes[0, 0].any()
    assert _read(codes, scales)[0, 40] == pytest.approx(1.0, rel=1e-3)


def test_rows_are_rounded_the_same_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    whole = round_groups(weight, 64, torch.float16, is_signed=True)
    monkeypatch.setattr(int4, "_ELEMENTS_AT_ONCE", 7 * 64)
    parts = round_groups(weight, 64, torch.float16, is_signed=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@SIGNED
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_a_scale_that_half_precision_cannot_hold_is_refused(value: float, is_signed: bool) -> None:
    weight = torch.randn(2, 32)
    weight[1, 3] = value
    with pytest.raises(InvalidInputError, match="not finite, or too large"):
        round_groups(weight, 32, torch.float16, is_signed=is_signed)
