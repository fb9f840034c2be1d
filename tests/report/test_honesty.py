"""What a hurried reader could take for more than was measured."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest

from mobilekit import report
from mobilekit.metrics.intervals import mcnemar_exact
from mobilekit.report.numbers import moment, plain_ms
from mobilekit.report.paired import student_t
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import Plan
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]


def _words(documents: Documents) -> str:
    """Return the page as a reader sees it: one string without tags."""
    record, plan, manifest, results = documents
    page = report.build(
        RunRecord.parse(record, "run"),
        plans=[Plan.parse(plan, "plan")],
        manifest=Manifest.parse(manifest, "manifest"),
        results=[Result.parse(result, "result") for result in results],
    )
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split()).replace("\u00a0", " ")


def _with_torch_after(documents: Documents) -> Documents:
    """Add the compressed checkpoint, run by torch: no faster than before, a worse perplexity."""
    record, plan, manifest, results = documents
    mine = [copy.deepcopy(r) for r in results if r["artifact"]["id"] == "before"]
    for result in mine:
        result["artifact"] = {**result["artifact"], "id": "after", "bytes": 6_460_160}
        if "perplexity" in result["metrics"]:
            result["metrics"]["perplexity"] *= 1.1
    return record, plan, manifest, results + mine


def test_the_headline_names_the_runtime_it_beats(documents: Callable[[], Documents]) -> None:
    words = _words(documents())
    assert "faster to decode than torch eager" in words
    assert "Before means the original checkpoint, run by torch eager." in words
    assert "torch before, executorch after" in words


def test_no_runtime_is_named_where_both_sides_share_it(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    for result in results:
        result["runtime"] = {"name": "torch"}
    words = _words((record, plan, manifest, results))
    assert "faster to decode," in words
    assert "than torch eager" not in words


def test_compression_alone_is_told_from_the_export(documents: Callable[[], Documents]) -> None:
    words = _words(_with_torch_after(documents()))
    alone = re.search(r"Compression and recovery alone, both sides in torch: (.*?\.) The", words)
    assert alone is not None
    # 4 212 096 parameters of two bytes became 3 230 080; the same samples give the same speed
    share = f"−{(1 - 3_230_080 / 4_212_096) * 100:.1f} %"
    assert (
        alone[1] == f"weights {share}, decode speed no change (within noise), perplexity +10.0 %."
    )
    assert "by compression executorch-xnnpack-int8 by export" in words


def test_pruned_experts_are_not_said_to_make_a_token_cheaper(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    record["models"]["after"]["active_parameters"] = 1_064_192
    words = _words((record, plan, manifest, results))
    assert "smaller, not a token cheaper" in words
    assert "a token costs about as much as before" in words
    plan["edits"] = []
    assert "not a token cheaper" not in _words((record, plan, manifest, results))


def test_time_to_first_token_is_the_metric_and_not_the_cold_inference(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = _with_torch_after(documents())
    for result in results:
        if result["kind"] == "profile" and result.get("samples"):
            result["metrics"]["ttft_ms"] = {"p50": 12.5, "n": 5}
    words = _words((record, plan, manifest, results))
    assert "Time to first token, pp128+tg64 12.5 ms 12.5 ms no change" in words


def test_recovery_shows_losses_and_tokens(documents: Callable[[], Documents]) -> None:
    words = _words(documents())
    assert "held-out loss 3.41 → 3.19 nats a token (perplexity 30.3 → 24.3)" in words
    assert "tokens read 200 000" in words
    assert "not on the scale of the held-out loss" in words


def test_parity_shows_both_references_and_who_evaluated(
    documents: Callable[[], Documents],
) -> None:
    words = _words(documents())
    against_fp32 = "max 0.21 KL 2.0 × 10⁻⁴ KL p90 5.0 × 10⁻⁴ top-1 99.4 %"
    against_same = "max 3.1 × 10⁻⁶ KL 4.0 × 10⁻¹² KL p90 9.0 × 10⁻¹² top-1 100 %"
    assert f"{against_fp32} {against_same}" in words
    assert "evaluated from the saved file by mil-numpy, not run by Apple’s runtime" in words
    assert "7 of 8 equal 1 excused 0 different 64 tokens each" in words
    assert "35 of 40 greedy continuations equal fp32 eager’s" in words


def test_one_rate_on_the_whole_page(documents: Callable[[], Documents]) -> None:
    record, plan, manifest, results = documents()
    for result in results:
        if result["kind"] == "profile" and result.get("samples"):
            result["metrics"]["decode_tokens_per_s"] = {"p50": 1234.0, "mean": 777.0, "n": 5}
    words = _words((record, plan, manifest, results))
    assert words.count("1 234 tok/s") > 10  # tile, bars with titles, tables
    assert "777" not in words


def test_a_run_that_slowed_down_says_so_beside_the_headline(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    for result in results:
        if result["artifact"]["id"] == "executorch-xnnpack-int8" and result.get("samples"):
            result["thermal"] = {"throttling": {"flag": True, "first": 1.0, "last": 1.6}}
        result["device"]["is_virtual"] = True
    words = _words((record, plan, manifest, results))
    assert "executorch after; slowed down during its run" in words
    assert "The machine is a virtual one" in words


def test_accuracy_inside_the_noise_is_called_so(documents: Callable[[], Documents]) -> None:
    words = _words(documents())
    assert "−1.3 points, within noise" in words
    assert "not above chance" not in words


def test_accuracy_no_better_than_chance_is_called_so(documents: Callable[[], Documents]) -> None:
    record, plan, manifest, results = documents()
    for result in results:
        if "accuracy" in result["metrics"]:
            result["metrics"].update(accuracy=0.2625, interval=[0.179, 0.368])
    words = _words((record, plan, manifest, results))
    assert "not above chance (25%)" in words
    assert "chance 25 %" in words


def test_paired_test_counts_the_questions_that_differ(documents: Callable[[], Documents]) -> None:
    record, plan, manifest, results = documents()
    ids = [f"q{i:02d}" for i in range(80)]
    for result in results:
        if "correct_ids" in result["metrics"]:
            before = result["artifact"]["id"] == "before"
            # before is right on 0..39, after on 30..49: 30 against 10 differ
            right = ids[:40] if before else ids[30:50]
            result["metrics"].update(correct_ids=right, accuracy=len(right) / 80)
    p = mcnemar_exact(30, 10)
    assert p < 0.05
    assert f"p = {p:.2g}, a difference." in _words((record, plan, manifest, results))


def test_perplexity_change_has_an_interval_paired_by_window(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    for result in results:
        if "perplexity" in result["metrics"]:
            shift = 0.0 if result["artifact"]["id"] == "before" else 1.0
            noise = [3.0 * (-1) ** i for i in range(16)]
            extra = [shift + (n if shift else 0) for n in noise]
            result["metrics"]["windows"] = [[100, 300.0 + e] for e in extra]
    words = _words((record, plan, manifest, results))
    # the mean is 0.01 nats a token, the standard error sqrt(16/15 * 16 * 9) / 1600
    found = re.search(r"paired by window: −(\S+) to \+(\S+) %; within noise", words)
    assert found is not None
    reach = 2.1314 * math.sqrt(16 / 15 * 16 * 9) / 1600  # t of 15 degrees of freedom, from a table
    assert float(found[1]) == pytest.approx(-100 * math.expm1(0.01 - reach), abs=0.051)
    assert float(found[2]) == pytest.approx(100 * math.expm1(0.01 + reach), abs=0.051)


@pytest.mark.parametrize(
    ("freedom", "tabulated"), [(7, 2.3646), (10, 2.2281), (15, 2.1314), (30, 2.0423), (120, 1.9799)]
)
def test_student_t_agrees_with_the_printed_table(freedom: int, tabulated: float) -> None:
    assert student_t(freedom) == pytest.approx(tabulated, abs=1e-3)


def test_moment_and_milliseconds() -> None:
    assert moment("2026-01-02T03:04:05Z") == "2026-01-02 03:04 UTC"
    assert moment("2026-01-02T03:04:05+02:00") == "2026-01-02 01:04 UTC"
    assert moment("yesterday") == "yesterday"
    assert plain_ms(0.1968) == "0.197\u00a0ms"
    assert plain_ms(1234.0) == "1\u202f234\u00a0ms"
    assert plain_ms(None) == "–"
