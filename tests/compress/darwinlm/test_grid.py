"""Levels: even steps, multiples, none twice; and the start of a search."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mobilekit.compress.darwinlm.config import DarwinConfig
from mobilekit.compress.darwinlm.grid import Grid, grids, spread_counts, uniform_levels
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.models.tiny import make_tiny


@given(count=st.integers(1, 3000), levels=st.integers(2, 40), power=st.integers(0, 5))
def test_counts_ascend_in_multiples(count: int, levels: int, power: int) -> None:
    counts = spread_counts(count, levels, 2**power)
    assert counts == sorted(set(counts))
    assert counts[0] == 0
    assert counts[-1] == count
    assert all(value % 2**power == 0 for value in counts[:-1])
    assert len(counts) <= levels
    if count >= 2 * 2**power * (levels - 1):
        assert len(counts) == levels
        step = count / (levels - 1)
        half = 2**power / 2 + 1e-6
        assert all(abs(v - k * step) <= half for k, v in enumerate(counts[:-1]))


def test_counts_of_the_published_models() -> None:
    # Qwen-2.5-14B: attention in steps of 512 columns = 4 heads of 40, MLP in multiples of 32
    assert [heads * 128 for heads in spread_counts(40, 11, 1)] == list(range(0, 5121, 512))
    published = [0, 1376, 2752, 4160, 5536, 6912, 8288, 9664, 11072, 12448, 13824]
    assert spread_counts(13824, 11, 32) == published


def levels_of(most: list[int], steps: list[int], sparsity: float) -> tuple[int, ...]:
    made = [
        Grid(i, "channel", 8 * s, 1, "x", tuple(8 * k for k in range(m + 1)), s, 1)
        for i, (m, s) in enumerate(zip(most, steps, strict=True))
    ]
    return uniform_levels(made, sparsity)


@given(
    steps=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    may_go=st.booleans(),
    sparsity=st.floats(0.0, 0.99),
)
def test_the_start_is_even_and_has_the_nearest_sum(
    steps: list[int], may_go: bool, sparsity: float
) -> None:
    most = [count if may_go else count - 1 for count in steps]
    total = math.floor(sparsity * sum(steps) + 0.5)
    if total > sum(most):
        with pytest.raises(UsageError, match="beyond the last levels"):
            levels_of(most, steps, sparsity)
        return
    levels = levels_of(most, steps, sparsity)
    assert sum(levels) == total
    assert all(0 <= level <= limit for level, limit in zip(levels, most, strict=True))
    free = [v for v, limit in zip(levels, most, strict=True) if v < limit]
    assert not free or max(levels) - min(free) <= 1


def test_the_start_spreads_what_does_not_divide_over_the_depth() -> None:
    assert levels_of([4] * 8, [4] * 8, 0.5) == (2,) * 8
    assert levels_of([2] * 8, [2] * 8, 0.25) == (0, 1, 0, 1, 0, 1, 0, 1)
    assert sum(levels_of([10] * 6, [10] * 6, 0.33)) == 20


def test_a_target_means_the_same_where_sub_blocks_must_stay() -> None:
    assert levels_of([9] * 4, [10] * 4, 0.5) == levels_of([10] * 4, [10] * 4, 0.5) == (5,) * 4


def test_heads_by_mode(tiny: Callable[[str], nn.Module]) -> None:
    model = tiny("llama")
    config = {"levels": 5, "channel_multiple": 8}
    even, _ = grids(model, DarwinConfig(group_mode="even", **config))
    whole, _ = grids(model, DarwinConfig(group_mode="whole", **config))
    free, _ = grids(model, DarwinConfig(group_mode="free", **config))
    heads, kv = model.config.num_attention_heads, model.config.num_key_value_heads  # type: ignore[union-attr]
    assert {grid.unit for grid in even} == {"head", "channel"}
    assert {grid.unit for grid in whole} == {"kv_head", "channel"}
    for grid in even:
        if grid.unit == "head":
            assert grid.count == heads
            assert grid.runs == kv
            assert all(gone % kv == 0 for gone in grid.removed)
    for grid in whole:
        if grid.unit == "kv_head":
            assert grid.count == kv
            assert grid.runs == 1
    assert all(grid.runs == 1 for grid in free)


def test_the_last_level_stays_out_where_sub_blocks_must_stay(
    tiny: Callable[[str], nn.Module],
) -> None:
    found, _ = grids(tiny("llama"), DarwinConfig(levels=3, remove_blocks=False))
    assert all(grid.removed[-1] < grid.count for grid in found)


def test_the_only_attention_cannot_go() -> None:
    model = make_tiny("llama", num_hidden_layers=1)
    found, _ = grids(model, DarwinConfig(levels=3))
    (head,) = (grid for grid in found if grid.unit == "head")
    (channel,) = (grid for grid in found if grid.unit == "channel")
    assert head.removed[-1] < head.count
    assert channel.removed[-1] == channel.count


def test_coinciding_levels_are_refused(tiny: Callable[[str], nn.Module]) -> None:
    with pytest.raises(UsageError, match="coincide"):
        grids(tiny("llama"), DarwinConfig(levels=200, channel_multiple=64))


def test_models_without_channels_say_so(tiny: Callable[[str], nn.Module]) -> None:
    found, skipped = grids(tiny("qwen3_moe"), DarwinConfig())
    assert {grid.unit for grid in found} == {"head"}
    assert "have no channels" in skipped[0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"survivors": [4, 2, 1]}, "3 entries in fitness_tokens"),
        ({"variant": "evopress", "fitness_tokens": [1, 2]}, "4 entries in fitness_tokens"),
        ({"variant": "uniform", "generations": 3}, "'generations' has no effect"),
        ({"variant": "evopress", "finetune_pool": 3}, "'finetune_pool' has no effect"),
        ({"levels": 1}, "levels"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"group_mode": "odd"}, "group_mode"),
        ({"survivors": []}, "survivors"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        DarwinConfig.parse(settings, "test")
