from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.profile import latency
from mobilekit.schema.result import Sample

VALUES = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=60)


@given(VALUES, st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], share: float) -> None:
    expected = float(np.percentile(values, share * 100))
    assert latency.percentile(values, share) == pytest.approx(expected, rel=1e-9)


@given(VALUES)
def test_summary_is_numpys(values: list[float]) -> None:
    found = latency.summarise(values)
    assert found["n"] == len(values)
    assert found["mean"] == pytest.approx(float(np.mean(values)), rel=1e-9)
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name] == pytest.approx(float(np.percentile(values, share)), rel=1e-9)
    if len(values) > 1:
        expected = float(np.std(values, ddof=1))
        assert found["std"] == pytest.approx(expected, rel=1e-6, abs=1e-6 * max(values))
    else:
        assert found["std"] is None


def test_no_samples_give_null_and_a_reason() -> None:
    found = latency.summarise([])
    assert found == {
        **dict.fromkeys(("p50", "p90", "p99", "mean", "std")), "n": 0, "reason": "no samples"
    }  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_slope_is_the_least_squares_line(values: list[float]) -> None:
    expected = float(np.polyfit(np.arange(len(values)), values, 1)[0])
    found = latency.slope(values)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6 * (1 + max(map(abs, values))))


def test_slope_of_a_leak_is_its_size() -> None:
    assert latency.slope([100.0, 164.0, 228.0, 292.0]) == 64.0
    assert latency.slope([5.0]) is None


def step(phase: str, repetition: int, token: int | None, ns: int, tokens: int = 1) -> Sample:
    return Sample(phase=phase, repetition=repetition, token=token, tokens=tokens, ns=ns)  # type: ignore[arg-type]


def test_generation_from_an_empty_context_by_hand() -> None:
    # two repetitions of three tokens; the first token has no token before it
    samples = [
        *[step("decode", 0, i, ns) for i, ns in enumerate((90_000_000, 10_000_000, 30_000_000))],
        *[step("decode", 1, i, ns) for i, ns in enumerate((70_000_000, 20_000_000, 20_000_000))],
    ]
    metrics = latency.latency_metrics(samples)
    assert set(metrics) == {"tpot_ms", "decode_tokens_per_s"}
    assert metrics["tpot_ms"]["n"] == 4
    assert metrics["tpot_ms"]["mean"] == 20.0
    assert metrics["decode_tokens_per_s"]["n"] == 2
    assert metrics["decode_tokens_per_s"]["mean"] == pytest.approx(50.0)  # 2 tokens in 40 ms
    assert metrics["decode_tokens_per_s"]["std"] == pytest.approx(0.0)


def test_generation_after_a_prompt_by_hand() -> None:
    samples = [
        step("load", 0, None, 5_000_000),
        step("first", 0, None, 3_000_000),
        step("prefill", 0, None, 100_000_000, tokens=50),
        step("decode", 0, 0, 10_000_000),
        step("decode", 0, 1, 30_000_000),
    ]
    metrics = latency.latency_metrics(samples)
    assert metrics["load_ms"]["p50"] == 5.0
    assert metrics["first_inference_ms"]["p50"] == 3.0
    assert metrics["ttft_ms"]["p50"] == 100.0
    assert metrics["prefill_tokens_per_s"]["mean"] == 500.0
    assert metrics["tpot_ms"]["mean"] == 20.0  # (t_last - t_first) / (n - 1) with n = 3 tokens
    assert metrics["decode_tokens_per_s"]["mean"] == pytest.approx(50.0)


def test_one_generated_token_has_no_time_between_tokens() -> None:
    metrics = latency.latency_metrics([step("decode", 0, 0, 10_000_000)])
    assert metrics["tpot_ms"]["mean"] is None
    assert metrics["decode_tokens_per_s"]["reason"] == "no samples"


def steps(repetitions: int, tokens: int, cost: float, drift: float) -> list[Sample]:
    """Steps that cost more at later positions, and ``drift`` more from repetition to repetition."""
    return [
        step("decode", r, t, int(1e6 * (1 + cost * t) * (1 + drift * r)))
        for r in range(repetitions)
        for t in range(tokens)
    ]


def test_a_steady_device_is_not_throttled_though_later_steps_cost_more() -> None:
    samples = steps(5, 40, cost=0.1, drift=0.0)
    assert samples[-1].ns > 4 * samples[0].ns
    found = latency.throttling(samples)
    assert found["flag"] is False
    assert found["first"] == found["last"] == pytest.approx(1.0)


@pytest.mark.parametrize(("drift", "flag"), [(0.02, False), (0.03, True), (-0.05, False)])
def test_throttling_is_more_than_a_tenth_slower_at_the_end(drift: float, flag: bool) -> None:
    found = latency.throttling(steps(5, 40, cost=0.0, drift=drift))
    assert found["flag"] is flag
    assert found["last"] / found["first"] == pytest.approx(1 + 4 * drift, rel=1e-5)


def test_too_few_samples_give_no_verdict() -> None:
    assert latency.throttling(steps(1, 100, 0.0, 0.0))["reason"] == "needs two repetitions"
    few = latency.throttling(steps(2, 9, 0.0, 0.0))
    assert few["flag"] is None
    assert few["reason"] == "needs 20 samples, has 18"
