"""Bundles: a small ``.onnx`` in the real runtime and worker."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilekit import profile
from mobilekit.core.errors import InvalidInputError, MissingDependencyError, UsageError
from mobilekit.profile.targets import state_bytes, targets_of
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.manifest import ProgramRecord, TensorSpec
from mobilekit.schema.result import Result

pytest.importorskip("onnxruntime")
Make = Callable[[], Path]


def run(path: Path, **settings: object) -> list[Result]:
    defaults = {"workloads": ("pp8", "tg4"), "repetitions": 2, "warmup": 1}
    return profile.run(path, progress=lambda share, note: None, **{**defaults, **settings})  # type: ignore[arg-type]


def test_every_artifact_gives_a_result_or_the_reason(make_bundle: Make) -> None:
    root = make_bundle()
    results = run(root)
    record = open_bundle(root).artifact("onnx-cpu-fp32").files[0]
    assert [(r.artifact.id, r.workload.id) for r in results] == [
        ("onnx-cpu-fp32", "pp8"), ("onnx-cpu-fp32", "tg4"),
        ("coreml-mlprogram-fp32", "pp8"), ("coreml-mlprogram-fp32", "tg4"),
    ]  # fmt: skip
    prompt, generated = results[:2]
    assert (prompt.artifact.sha256, prompt.artifact.bytes) == (record.sha256, record.bytes)
    assert prompt.runtime["name"] == "onnxruntime"
    assert prompt.runtime["precision"] == "fp32"
    assert prompt.metrics["state_bytes"] == 2 * 2 * 64 * 4 * 4
    assert [s.phase for s in prompt.samples] == ["load", "first", "prefill", "prefill"]
    assert [s.phase for s in generated.samples] == 8 * ["decode"]
    assert prompt.memory is not None
    assert prompt.memory.peak_bytes


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_core_ml_elsewhere_is_skipped_without_a_figure(make_bundle: Make) -> None:
    results = run(make_bundle(), artifacts=["coreml"])
    assert [r.workload.id for r in results] == ["pp8", "tg4"]
    for result in results:
        assert set(result.metrics) == {"skipped"}
        assert "Core ML runs on macOS and iOS only" in result.metrics["skipped"]
        assert result.samples == ()
        assert result.memory is None
        assert result.energy is None
        assert result.workload.repetitions == 0
        assert profile.summary_line(result).startswith(f"{result.workload.id} skipped (Core ML")
        assert profile.row(result)[2] == "skipped"


def test_the_onnx_process_imports_onnxruntime_only(make_bundle: Make) -> None:
    (result,) = run(make_bundle(), artifacts=["onnx-cpu-fp32"], workloads=["tg2"])
    assert set(result.runtime["libraries"]) == {"onnxruntime"}


def test_a_zipped_bundle_runs_as_well(make_bundle: Make, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", make_bundle())
    (result,) = run(Path(archive), artifacts=["onnx"], workloads=["tg2"])
    assert result.metrics["decode_tokens_per_s"]["n"] == 2


def test_one_changed_byte_is_refused_by_the_worker(make_bundle: Make) -> None:
    root = make_bundle()
    file = root / "onnx/model.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidInputError, match="onnx-cpu-fp32: .*has changed") as caught:
        run(root)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_package_stops_only_those_who_asked_for_it(
    make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "blocker"
    (blocker / "onnxruntime").mkdir(parents=True)
    (blocker / "onnxruntime/__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')"
    )
    monkeypatch.setenv("PYTHONPATH", str(blocker))
    root = make_bundle()
    with pytest.raises(MissingDependencyError, match="'onnxruntime' is not installed"):
        run(root, artifacts=["onnx"])
    first = run(root)[0]
    assert "'onnxruntime' is not installed" in first.metrics["skipped"]


def test_names_choose_artifacts(make_bundle: Make) -> None:
    root = make_bundle()

    def ids(*names: str) -> list[str]:
        return [target.ref.id for target in targets_of(root, list(names), None)]

    assert ids("onnx") == ids("cpu") == ids("onnx-cpu-fp32") == ["onnx-cpu-fp32"]
    assert ids("coreml") == ids("mlpackage") == ids("mlprogram") == ["coreml-mlprogram-fp32"]
    assert ids("mlprogram", "onnx", "cpu") == ["onnx-cpu-fp32", "coreml-mlprogram-fp32"]
    with pytest.raises(UsageError, match="no artifact 'onxn'"):
        ids("onxn")


def test_the_cache_is_counted_from_states_or_from_past_inputs(make_bundle: Make) -> None:
    item = open_bundle(make_bundle()).artifact("onnx")
    past = TensorSpec(name="past_key_values.0.key", dtype="float16", shape=(1, 2, "past", 4))
    tokens = TensorSpec(name="input_ids", dtype="int64", shape=(1, "seq"))
    odd = TensorSpec(name="k0", dtype="float7", shape=(3,))

    def counted(**fields: tuple[TensorSpec, ...]) -> int | None:
        program = ProgramRecord(**{"inputs": (tokens,), "outputs": (), **fields})
        return state_bytes(item.model_copy(update={"programs": {"forward": program}}), 100)

    assert counted() is None
    assert counted(inputs=(tokens, past, past)) == 2 * (2 * 100 * 4 * 2)
    assert counted(states=(odd,)) is None


def test_another_interface_is_refused(make_bundle: Make) -> None:
    root = make_bundle()
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["interface"], manifest["task"] = "denoiser/1", "class-to-image"
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="has interface denoiser/1"):
        targets_of(root, None, None)


def test_a_workload_beyond_the_exported_context_starts_no_process(make_bundle: Make) -> None:
    with pytest.raises(UsageError, match="needs 65 positions, but the context has 64"):
        run(make_bundle(), workloads=["pp65"])


def test_rows_and_lines_show_what_was_measured(make_bundle: Make) -> None:
    prompt, generated = run(make_bundle(), artifacts=["onnx"])
    cells = dict(zip(profile.HEADERS, profile.row(prompt), strict=True))
    assert (cells["artifact"], cells["workload"]) == ("onnx-cpu-fp32", "pp8")
    assert cells["load"].endswith(" ms")
    assert cells["TTFT"].endswith(" ms")
    assert cells["decode tok/s"] == "–"
    assert cells["peak memory"].endswith(" MB")
    assert cells["J a token"] == "–" or prompt.energy.joules is not None  # type: ignore[union-attr]
    assert dict(zip(profile.HEADERS, profile.row(generated), strict=True))["load"] == "–"
    assert profile.summary_line(prompt).startswith("pp8 prefill ")
    assert profile.summary_line(generated).startswith("tg4 decode ")
