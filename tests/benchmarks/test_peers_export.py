from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import transformers

from mobilekit.models.tiny import TINY_MODELS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESPELLED = ("rope_parameters", "rope_theta", "partial_rotary_factor", "dtype")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", list(TINY_MODELS))
def test_the_older_spelling_means_the_same_model(name: str, benchmark: Any) -> None:
    prefix, settings = TINY_MODELS[name]
    cls = getattr(transformers, f"{prefix}ForCausalLM").config_class
    config = cls(**settings).to_dict()

    older = benchmark("peers.older_config").older_spelling(config)

    # transformers 5 still reads version 4's keys: they must give back what we started from
    assert not {"rope_parameters", "dtype"} & set(older)
    again = cls(**older).to_dict()
    assert without(again.get("rope_parameters"), "type") == config.get("rope_parameters")
    assert without(again, *RESPELLED) == without(config, *RESPELLED)


def without(given: dict[str, Any] | None, *names: str) -> dict[str, Any] | None:
    return None if given is None else {k: v for k, v in given.items() if k not in names}


def record(**changes: Any) -> dict[str, Any]:
    return {"bytes": 400_000, "max_abs": 2e-6, "reference_max_abs": 4.0, **changes}


def cell(precision: str, theirs: dict[str, Any], **rest: Any) -> dict[str, Any]:
    common = {"model": "llama", "peer": "optimum-onnx", "precision": precision}
    return {**common, "theirs": theirs, "ours": record(), **rest}


def test_table_says_the_error_the_size_and_the_ratio(benchmark: Any) -> None:
    table = benchmark("peers_export").table
    speed = {"decode_ratio": 3.456}

    line = table([cell("fp32", record(), speed=speed), cell("int8", record(bytes=90e6))])[2]

    assert line == (
        "| `LlamaForCausalLM` | optimum-onnx | 2e-06 · 400 kB | 2e-06 · 400 kB | 3.46× "
        "| 2e-06 · 90 MB | 2e-06 · 400 kB | – |"
    )


def test_equal_reasons_share_a_note(benchmark: Any) -> None:
    table = benchmark("peers_export").table
    failed = {"reason": "export: ValueError: no"}

    lines = table([cell("fp32", failed), cell("int8", failed)])

    assert lines[2].count("fails (1)") == 2
    assert lines[-1] == "1. export: ValueError: no"
    assert len(lines) == 5


def test_a_float_file_far_from_eager_is_called_wrong(benchmark: Any) -> None:
    shown = benchmark("peers_export").shown

    assert shown(record(max_abs=0.5), "fp32", []).startswith("**wrong** 0.50")
    assert "(its eager: 5e-01)" in shown(record(max_abs=0.5, reading=0.5), "fp32", [])
    assert not shown(record(max_abs=0.5), "int8", []).startswith("**wrong**")
