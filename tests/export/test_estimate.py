"""The estimates are pure, grow with what they depend on, and hold to what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from mobilekit.export.backends import BACKENDS
from mobilekit.export.builder import PRECISIONS
from mobilekit.export.estimate import (
    FOOTPRINTS,
    ModelFacts,
    artifact_bytes,
    model_facts,
    most_workers,
    parent_peak_bytes,
    worker_peak_bytes,
)
from mobilekit.export.preflight import plan_export

from mobilekit.core.memory import AvailableMemory

GB = 10**9
CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "vocab_size": 2048,
}
EMBEDDED = model_facts(CONFIG, 2_827_648, 5_655_296)


def test_facts_come_from_the_config() -> None:
    assert EMBEDDED.kv_width == 64
    assert EMBEDDED.cache_bytes(512) == 2 * 4 * 64 * 512 * 4
    bare = model_facts({"hidden_size": 64, "num_hidden_layers": 2}, 1000, 2000)
    assert bare.cache_bytes(512) == 0  # a state-space model names no heads
    grouped = model_facts({**CONFIG, "head_dim": None, "num_key_value_heads": None}, 1, 1)
    assert grouped.kv_width == 128


def test_every_target_and_precision_has_a_footprint() -> None:
    assert set(FOOTPRINTS) == set(BACKENDS.names())
    for precision in PRECISIONS:
        assert artifact_bytes(EMBEDDED, precision) > 0


@pytest.mark.parametrize("target", sorted(FOOTPRINTS))
def test_more_of_anything_needs_more(target: str) -> None:
    base = worker_peak_bytes(EMBEDDED, target, "fp32", 512)
    assert worker_peak_bytes(EMBEDDED, target, "fp32", 4096) > base
    for change in ({"parameters": 10**8}, {"num_layers": 8}):
        assert worker_peak_bytes(replace(EMBEDDED, **change), target, "fp32", 512) > base
    larger = replace(EMBEDDED, parameters=10**8)
    assert parent_peak_bytes(larger) > parent_peak_bytes(EMBEDDED)


def test_fewer_bits_need_less_disk() -> None:
    sizes = [artifact_bytes(EMBEDDED, p) for p in ("fp32", "fp16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("peaks", "available", "most", "workers"),
    [
        ([3, 3, 3], 10, 4, 3),
        ([3, 3, 3], 6, 4, 2),
        ([3, 3, 3], 5, 4, 1),
        ([9, 1, 1], 9, 4, 1),  # the large one may meet a small one
        ([9, 1, 1], 10, 4, 2),
        ([3, 3, 3], 2, 4, 1),  # not even one: refused elsewhere, where it is no estimate's fault
        ([3, 3, 3], 100, 2, 2),
        ([3, 3, 3], None, 2, 2),
        ([3], 100, 4, 1),
    ],
)
def test_workers_that_fit(peaks: list[int], available: int | None, most: int, workers: int) -> None:
    assert most_workers(peaks, available, most) == workers


def test_less_memory_means_fewer_workers_and_a_smaller_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    facts = replace(EMBEDDED, parameters=10**8)

    def plan(gigabytes: float) -> Any:
        memory = AvailableMemory(round(gigabytes * GB), 64 * GB, "MemAvailable")
        return plan_export(facts, ["onnx", "coreml"], ["fp32", "int8"], 512, memory=memory)

    one, many = plan(5), plan(60)
    assert (one.workers, many.workers) == (1, 4)
    assert one.need.memory_bytes < many.need.memory_bytes
    assert one.need.disk_bytes == many.need.disk_bytes
    assert [need.step for need in one.needs] == [
        *("onnx fp32", "coreml fp32", "onnx int8", "coreml int8", "export")
    ]


# measured as benchmarks/export_memory.py does, x86-64, one thread, context 512: the worker's peak
# RSS (the larger one where there were several runs) and the file, in bytes; no file where it was
# measured before tied weights were stored once
RANDOM_16M = ModelFacts(15_734_400, 31_468_800, 6, 16384, 384, 128)
RANDOM_94M = ModelFacts(94_392_576, 188_785_152, 12, 24576, 768, 256)
MOE_20M = ModelFacts(19_558_016, 39_116_032, 6, 16384, 256, 128)
MEASURED = [
    (EMBEDDED, "coreml", "fp32", 674_045_952, 11_570_689),
    (EMBEDDED, "coreml", "int8", 689_950_720, 3_193_541),
    (EMBEDDED, "executorch", "fp32", 680_026_112, 11_387_392),
    (EMBEDDED, "executorch", "int8", 683_769_856, 3_008_896),
    (EMBEDDED, "executorch", "int4", 670_756_864, 1_728_128),
    (EMBEDDED, "onnx", "fp32", 674_127_872, 11_348_761),
    (EMBEDDED, "onnx", "int4", 631_844_864, 1_838_130),
    (EMBEDDED, "onnx", "int8", 615_641_088, 2_986_888),
    (MOE_20M, "coreml", "fp32", 1_117_097_984, 78_628_203),
    (MOE_20M, "executorch", "fp32", 1_148_977_152, None),
    (MOE_20M, "onnx", "fp32", 968_110_080, 78_263_760),
    (RANDOM_16M, "coreml", "fp32", 981_594_112, 63_254_543),
    (RANDOM_16M, "coreml", "int8", 1_003_499_520, 16_174_129),
    (RANDOM_16M, "executorch", "fp32", 988_737_536, 62_996_480),
    (RANDOM_16M, "executorch", "int8", 1_004_556_288, 15_976_192),
    (RANDOM_16M, "executorch", "int4", 879_050_752, 9_340_672),
    (RANDOM_16M, "coreml", "int4", 973_561_856, 9_213_395),
    (RANDOM_16M, "onnx", "int4", 775_299_072, 9_177_252),
    (RANDOM_16M, "onnx", "fp16", 897_191_936, 31_621_220),
    (RANDOM_16M, "onnx", "fp32", 839_938_048, 62_951_229),
    (RANDOM_16M, "onnx", "int8", 828_358_656, 16_263_862),
    (RANDOM_94M, "coreml", "fp32", 2_697_478_144, 378_115_316),
    (RANDOM_94M, "coreml", "int8", 2_771_066_880, 95_287_619),
    (RANDOM_94M, "executorch", "fp32", 2_800_902_144, None),
    (RANDOM_94M, "executorch", "int8", 1_894_703_104, None),
    (RANDOM_94M, "onnx", "fp32", 2_103_427_072, 377_554_824),
    (RANDOM_94M, "onnx", "int8", 2_071_236_608, 97_402_003),
]


@pytest.mark.parametrize(("facts", "target", "precision", "peak", "size"), MEASURED)
def test_estimates_are_over_what_was_measured_by_at_most_half(
    facts: ModelFacts, target: str, precision: str, peak: int, size: int | None
) -> None:
    assert 1 <= worker_peak_bytes(facts, target, precision, 512) / peak <= 1.5
    assert size is None or 1 <= artifact_bytes(facts, precision) / size <= 1.5
