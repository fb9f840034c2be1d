import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.compress.aimer.criteria import ExpertStatistics

CRITERIA = ("frequency", "seer", "ean", "reap", "man", "msan")


def test_by_hand() -> None:
    index = torch.tensor([[0, 2], [2, 3]])
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    norms = torch.tensor([[2.0, 4.0], [8.0, 1.0]])
    found = ExpertStatistics(4).add(index, weights, norms)
    expected = {
        "frequency": [1, 0, 2, 1],
        "seer": [0.75, 0, 0.75, 0.5],
        "ean": [2, 0, 12, 1],
        "reap": [1.5, 0, (0.25 * 4 + 0.5 * 8) / 2, 0.5],
        "man": [2, 0, 6, 1],
        "msan": [4, 0, (16 + 64) / 2, 1],
    }
    for criterion in CRITERIA:
        scores = found.importance(criterion)
        assert scores.dtype == torch.float64
        assert scores.tolist() == expected[criterion], criterion
    assert found.unrouted == [1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 25), st.integers(0, 99))
def test_against_a_loop_over_tokens(count: int, top_k: int, tokens: int, seed: int) -> None:
    top_k = min(top_k, count)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(tokens, count, generator=generator).argsort(dim=1)
    index = order[:, :top_k]
    weights = torch.rand(tokens, top_k, generator=generator)
    norms = torch.rand(tokens, top_k, generator=generator).double() * 9
    found = ExpertStatistics(count).add(index, weights, norms)
    for expert in range(count):
        mine = [
            (float(weights[t, j]), float(norms[t, j]))
            for t in range(tokens)
            for j in range(top_k)
            if int(index[t, j]) == expert
        ]
        each = max(1, len(mine))
        expected = (
            len(mine),
            math.fsum(g for g, _ in mine),
            math.fsum(f for _, f in mine),
            math.fsum(g * f for g, f in mine) / each,
            math.fsum(f for _, f in mine) / each,
            math.fsum(f * f for _, f in mine) / each,
        )
        scores = [float(found.importance(criterion)[expert]) for criterion in CRITERIA]
        assert scores == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    index = torch.rand(64, 5, generator=generator).argsort(dim=1)[:, :2]
    weights, norms = torch.rand(2, 64, 2, generator=generator)
    whole, parts = ExpertStatistics(5).add(index, weights, norms), ExpertStatistics(5)
    for start in range(0, 64, 7):
        piece = slice(start, start + 7)
        parts.add(index[piece], weights[piece], norms[piece])
    for criterion in CRITERIA:
        torch.testing.assert_close(
            parts.importance(criterion), whole.importance(criterion), rtol=1e-13, atol=0
        )


def test_many_small_terms_are_not_lost() -> None:
    index, tenth = torch.zeros(2**20, 1, dtype=torch.long), torch.full((2**20, 1), 0.1)
    found = ExpertStatistics(1).add(index, tenth.bfloat16())
    assert float(found.gates) == float(torch.tensor(0.1).bfloat16()) * 2**20


def test_reading_a_score_does_not_hand_out_the_sums() -> None:
    found = ExpertStatistics(2).add(torch.tensor([[1]]), torch.ones(1, 1))
    found.importance("frequency").zero_()
    assert found.tokens.tolist() == [0, 1]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_sums_that_are_not_numbers_are_noticed(broken: float) -> None:
    index, weights = torch.tensor([[0]]), torch.ones(1, 1)
    assert ExpertStatistics(2).add(index, weights, weights).is_finite()
    assert not ExpertStatistics(2).add(index, weights * broken).is_finite()
    assert not ExpertStatistics(2).add(index, weights, weights * broken).is_finite()


def test_shapes_and_ids_are_checked() -> None:
    weights = torch.ones(3, 2)
    with pytest.raises(ValueError, match="one \\(T, k\\)"):
        ExpertStatistics(4).add(torch.zeros(3, 1, dtype=torch.long), weights)
    with pytest.raises(ValueError, match="one \\(T, k\\)"):
        ExpertStatistics(4).add(torch.zeros(3, 2, dtype=torch.long), weights, weights[:2])
    for bad in (-1, 4):
        with pytest.raises(ValueError, match="outside of 0 to 3"):
            ExpertStatistics(4).add(torch.full((3, 2), bad), weights)
