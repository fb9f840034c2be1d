"""The estimated needs of a run's steps: complete, in order, and true to what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mobilekit.export.estimate import ModelFacts
from mobilekit.export.preflight import plan_export

from mobilekit.core.memory import AvailableMemory
from mobilekit.core.needs import Need
from mobilekit.pipeline.estimate import step_needs
from mobilekit.pipeline.preflight import step_names
from mobilekit.recipe import Recipe, check_recipe

MB = 10**6


@dataclass(frozen=True)
class Measured:
    """Peak RSS in MB of a process that did one step of a bfloat16 Qwen3-MoE and nothing else."""

    facts: ModelFacts
    compress: int
    next_token: int
    distill: int
    evaluate: int
    profile: int


MEASURED = [
    Measured(ModelFacts(2_827_648, 5_655_296, 4, 2048, 128, 64), 436, 1026, 1181, 545, 484),
    Measured(ModelFacts(19_558_016, 39_116_032, 6, 16384, 256, 128), 547, 1808, 2765, 707, 546),
    Measured(ModelFacts(102_360_320, 204_720_640, 12, 24576, 512, 128), 973, 3876, 6048, 1132, 876),
]


def recipe(**content: Any) -> Recipe:
    return check_recipe({"version": 1, "export": None, **content})


WHOLE = {
    "compress": [{"method": "aimer"}],
    "recover": {"objective": ["next_token"]},
    "profile": {},
    "evaluate": [{"suite": "perplexity"}],
}


def needs_of(facts: ModelFacts, **content: Any) -> dict[str, Need]:
    return {need.step: need for need in step_needs(recipe(**content), facts, None)}


@pytest.mark.parametrize("measured", MEASURED, ids=lambda m: f"{m.facts.parameters}")
def test_estimates_are_over_what_was_measured_by_at_most_half(measured: Measured) -> None:
    needs = needs_of(measured.facts, **WHOLE)
    taught = {"objective": ["distill", "next_token"]}
    distill = needs_of(measured.facts, **{**WHOLE, "recover": taught})
    profile = needs["profile"].memory_bytes - needs["profile"].own_bytes
    loaded = needs_of(measured.facts, **WHOLE, model={"dtype": "bfloat16"})
    pairs = [
        (loaded["compress"].own_bytes, measured.compress),
        (needs["recover"].own_bytes, measured.next_token),
        (distill["recover"].own_bytes, measured.distill),
        (needs["evaluate"].own_bytes, measured.evaluate),
        (profile, measured.profile),
    ]
    for estimated, peak in pairs:
        assert 1 <= estimated / (peak * MB) <= 1.5


@pytest.mark.parametrize(("millions", "peak"), [(2.8, 432), (19, 443), (105, 446), (877, 458)])
def test_file_to_file_needs_as_little_whatever_the_size(millions: float, peak: int) -> None:
    """Measured: peak RSS in MB of a process that compressed a bfloat16 Qwen3-MoE, nothing else."""
    parameters = round(millions * 10**6)
    facts = ModelFacts(parameters, 2 * parameters, 12, 24576, 512, 128)
    need = needs_of(facts, compress=[{"method": "aimer"}])["compress"]
    assert 1 <= need.own_bytes / (peak * MB) <= 1.5
    assert need.disk_bytes == {"output": 2 * parameters}


def test_every_step_of_a_recipe_has_a_need_in_order() -> None:
    facts = MEASURED[0].facts
    memory = AvailableMemory(64 * 10**9, 64 * 10**9, "MemAvailable")
    plan = plan_export(facts, ["onnx"], ["fp32"], 512, memory=memory)
    whole = check_recipe({"version": 1, **WHOLE, "export": {"targets": ["onnx"]}})
    needs = step_needs(whole, facts, plan)
    names = ["compress" if name == "aimer" else name for name in step_names(whole)]
    assert [need.step for need in needs] == names
    assert all(need.memory_bytes >= need.own_bytes > 0 for need in needs)


def test_a_wider_dtype_and_a_larger_batch_need_more() -> None:
    facts = MEASURED[1].facts
    base = needs_of(facts, **WHOLE, model={"dtype": "bfloat16"})
    wide = needs_of(facts, **WHOLE, model={"dtype": "float32"})
    assert wide["compress"].own_bytes > base["compress"].own_bytes
    large = {**WHOLE, "recover": {"objective": ["next_token"], "batch_size": 32}}
    assert needs_of(facts, **large)["recover"].own_bytes > 2 * base["recover"].own_bytes


def test_what_a_run_holds_on_to_is_counted_in_every_later_step() -> None:
    """Measured in one process: recovery of 2.8 M parameters, and two suites on two formats."""
    facts = MEASURED[0].facts
    memory = AvailableMemory(64 * 10**9, 64 * 10**9, "MemAvailable")
    plan = plan_export(facts, ["executorch", "onnx"], ["fp32"], 512, memory=memory)
    suites = [{"suite": "perplexity"}, {"suite": "mobile_mmlu", "data": "sample"}]
    export = {"targets": ["executorch", "onnx"], "precisions": ["fp32"]}

    def needs(**content: Any) -> dict[str, Need]:
        whole = check_recipe({"version": 1, "export": export, "evaluate": suites, **content})
        return {need.step: need for need in step_needs(whole, facts, plan)}

    assert needs()["export"] == plan.need
    trained = needs(compress=[{"method": "aimer"}], recover={"objective": ["next_token"]})
    for step, peak in {"export": 572, "verify": 508, "evaluate": 848}.items():
        assert 1 <= trained[step].own_bytes / (peak * MB) <= 1.5
    assert trained["export"].memory_bytes > plan.need.memory_bytes


def test_the_text_that_a_compress_step_looks_at_is_counted(tmp_path: Path) -> None:
    facts = MEASURED[0].facts
    (tmp_path / "mine.txt").write_bytes(b"a" * MB)

    def peak(**step: str) -> int:
        loaded = {"dtype": "bfloat16"}  # asked for by name, so that no variant works file to file
        found = needs_of(facts, compress=[{"method": "aimer", **step}], model=loaded)
        return found["compress"].memory_bytes

    embedded, own = {"variant": "ean"}, {"calibration_data": str(tmp_path / "mine.txt")}
    assert peak(**embedded) >= 853 * MB  # measured, 65,536 tokens
    assert peak() == peak(variant="magnitude")
    assert peak() + MB < peak(**embedded, **own) < peak(**embedded)
