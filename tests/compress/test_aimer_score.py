import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from mobilekit.compress.aimer import kernel
from mobilekit.compress.aimer.score import (
    aimer_scores,
    choose_pruned,
    magnitude_scores,
    rounded,
    uniform_count,
    weight_sums,
)
from mobilekit.models.families import family_of


def random_experts(seed: int, count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(count, 10, 7, generator=generator)
    down = torch.randn(count, 7, 5, generator=generator) * 3
    return [gate_up, down]


def test_hand_tensors() -> None:
    n = 24
    one_hot = torch.zeros(n)
    one_hot[5] = -2.5
    cases = {
        "all ±c": (torch.tensor([0.3, -0.3]).repeat(n // 2), 1.0),
        "one-hot": (one_hot, 1 / math.sqrt(n)),
        "3, 4": (torch.tensor([3.0, 4.0]), 7 / (math.sqrt(2) * 5)),
    }
    for name, (weights, expected) in cases.items():
        assert aimer_scores([weights[None, :, None]]).item() == pytest.approx(expected), name


def test_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(3, 200_000, generator=generator, dtype=torch.float64)
    normal = torch.randn(200_000, generator=generator)
    laplace = uniform[0].sub(0.5).sign() * uniform[1].log()
    found = [aimer_scores([w[None]]).item() for w in (normal, laplace, uniform[2].mul(2).sub(1))]
    assert found == pytest.approx(
        [math.sqrt(2 / math.pi), 1 / math.sqrt(2), math.sqrt(3) / 2], abs=3e-3
    )


def reference(matrices: list[np.ndarray]) -> float:
    """Score one expert in float64 from its separate matrices, by the definition."""
    w = np.concatenate([m.astype(np.float64).ravel() for m in matrices])
    return float((np.abs(w).sum() / w.size) / np.sqrt((w**2).sum() / w.size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_float64_over_the_unfused_matrices_on_disk(
    tiny_qwen3_moe: nn.Module, tmp_path: Path, dtype: torch.dtype
) -> None:
    import copy

    model: Any = copy.deepcopy(tiny_qwen3_moe).to(dtype)
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():  # one expert: gate constant, up one-hot, down Gaussian
        experts.gate_up_proj[3, :32] = 0.25
        experts.gate_up_proj[3, 32:] = 0
        experts.gate_up_proj[3, 40, 11] = 7
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for group in family_of(model).units(model, "expert"):
        found = aimer_scores(group.scored_tensors(model)).tolist()
        for expert in range(8):
            prefix = f"model.layers.{group.layer}.mlp.experts.{expert}"
            parts = [stored[f"{prefix}.{p}_proj.weight"] for p in ("gate", "up", "down")]
            expected = reference([part.float().numpy() for part in parts])
            assert abs(found[expert] - expected) < 1e-6


def test_pooled_sums_are_not_the_mean_of_ratios() -> None:
    constant, one_hot = torch.full((1, 4, 4), 0.5), torch.zeros(1, 4, 4)
    one_hot[0, 1, 1] = 3.0
    found = aimer_scores([constant, one_hot]).item()
    assert found == pytest.approx((8 + 3) / math.sqrt(32 * (4 + 9)))
    assert found != pytest.approx((1 + 0.25) / 2, abs=1e-3)


@pytest.mark.parametrize("factor", [10.0, -1.0, 1e-6, 1e6])
def test_scale_invariance(factor: float) -> None:
    tensors = random_experts(0)
    before = aimer_scores(tensors)
    for tensor in tensors:
        tensor[2] *= factor
    torch.testing.assert_close(aimer_scores(tensors), before, rtol=1e-6, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 5))
def test_permuting_experts_permutes_scores(order: list[int], seed: int) -> None:
    tensors = random_experts(seed)
    for criterion in (aimer_scores, magnitude_scores):
        permuted = criterion([tensor[order] for tensor in tensors])
        assert torch.equal(permuted, criterion(tensors)[order])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_experts(1)
    whole = weight_sums(tensors)
    monkeypatch.setattr(kernel, "_CHUNK", 80)
    chunked = weight_sums(tensors)
    assert torch.equal(whole[0], chunked[0])
    assert torch.equal(whole[1], chunked[1])
    assert whole[2] == chunked[2] == 10 * 7 + 7 * 5


def test_transposed_views_are_read_right() -> None:
    gate_up, down = random_experts(2)
    view = gate_up.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(aimer_scores([view, down]), aimer_scores([gate_up, down]))


def test_dead_and_broken_experts() -> None:
    tensors = random_experts(3)
    for tensor in tensors:
        tensor[1] = 0
    tensors[0][4, 0, 0] = math.nan
    tensors[1][5, 0, 0] = math.inf
    scores = aimer_scores(tensors)
    assert scores[1] == math.inf
    assert scores[4].isnan()
    assert scores[5].isnan()
    assert scores[[0, 2, 3]].isfinite().all()
    assert magnitude_scores(tensors)[1] == 0


def test_tiny_weights_do_not_underflow() -> None:
    tensors = random_experts(4)
    small = [tensor * 1e-30 for tensor in tensors]
    torch.testing.assert_close(aimer_scores(small), aimer_scores(tensors), rtol=1e-5, atol=0)


def test_tensors_of_different_expert_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="one E"):
        weight_sums([torch.ones(3, 2, 2), torch.ones(4, 2, 2)])


def test_rounded_keeps_ten_digits() -> None:
    values = rounded(torch.tensor([1 / 3, math.inf, 0.79788456080286], dtype=torch.float64))
    assert values == [0.3333333333, math.inf, 0.7978845608]
    assert json.loads(json.dumps(values[0])) == values[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.inf]), min_size=1, max_size=7), st.data())
def test_pruned_set_is_the_best_of_all_subsets(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    finite = [min(score, 10.0) for score in scores]
    subsets = list(itertools.combinations(range(len(scores)), count))
    best = max(round(sum(finite[i] for i in chosen), 9) for chosen in subsets)
    # among equals the lower ids go: the first of the best in lexicographic order
    expected = next(s for s in subsets if round(sum(finite[i] for i in s), 9) == best)
    assert choose_pruned(scores, count) == list(expected)


def test_kept_set_minimises_the_sum_of_scores() -> None:
    scores = aimer_scores(random_experts(5)).tolist()
    pruned = choose_pruned(scores, 3)
    kept = [i for i in range(6) if i not in pruned]
    assert sum(scores[i] for i in kept) == min(
        sum(scores[i] for i in chosen) for chosen in itertools.combinations(range(6), 3)
    )


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0, 0.999),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 8)), min_size=1, max_size=6),
)
def test_uniform_count_against_brute_force(sparsity: float, layers: list[tuple[int, int]]) -> None:
    experts = [max(count, k) for count, k in layers]
    top_k = [k for _, k in layers]
    target = round(sparsity * sum(experts))
    best: tuple[int, int] | None = None
    for removed in range(max(experts) + 1):
        if any(count - removed < k for count, k in zip(experts, top_k, strict=True)):
            continue
        distance = abs(removed * len(layers) - target)
        if best is None or distance < best[0]:  # the first, hence smaller, wins a tie
            best = (distance, removed)
    choice = uniform_count(sparsity, experts, top_k)
    assert best is not None
    assert choice.removed == best[1]
    assert choice.target == target
    assert choice.largest == min(c - k for c, k in zip(experts, top_k, strict=True))


@pytest.mark.parametrize(
    ("sparsity", "removed", "exact"),
    [
        (0.0, 0, True),
        (0.25, 4, True),
        (0.5, 8, True),
        (0.26, 4, False),
        (0.281, 4, False),
        (0.03, 0, False),
    ],
)
def test_uniform_count_by_hand(sparsity: float, removed: int, exact: bool) -> None:
    choice = uniform_count(sparsity, [16] * 4, [2] * 4)
    assert choice.removed == removed
    assert (choice.removed * 4 == choice.target) is exact


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_gives_the_same_rounded_scores(dtype: torch.dtype) -> None:
    tensors = [torch.randn(64, 256, 128).to(dtype), torch.randn(64, 128, 128).to(dtype)]
    on_gpu = aimer_scores([tensor.cuda() for tensor in tensors])
    assert rounded(aimer_scores(tensors)) == rounded(on_gpu)
