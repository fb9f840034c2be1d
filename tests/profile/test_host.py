from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilekit import profile
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.profile.host import HostDevice
from mobilekit.profile.latency import latency_metrics
from mobilekit.runtime.sources import checkpoint_facts
from mobilekit.schema.result import Result


@pytest.fixture(scope="module")
def ran(checkpoint: Path) -> tuple[list[Result], list[tuple[float, str]]]:
    """A tiny checkpoint, measured once in a process of its own."""
    seen: list[tuple[float, str]] = []
    results = profile.run(
        checkpoint,
        workloads=("pp16", "pp4+tg3"),
        repetitions=2,
        warmup=1,
        threads=1,
        label="before",
        progress=lambda share, note: seen.append((share, note)),
    )
    return results, seen


def test_a_checkpoint_gives_one_result_a_workload(
    ran: tuple[list[Result], list[tuple[float, str]]], checkpoint: Path
) -> None:
    results, _ = ran
    facts = checkpoint_facts(checkpoint)
    assert [r.workload.id for r in results] == ["pp16", "pp4+tg3"]
    for result in results:
        assert result.kind == "profile"
        assert result.device["class"] == f"host-{platform.machine()}"
        assert (result.artifact.id, result.artifact.sha256) == ("before", facts.hash[7:])
        assert result.artifact.bytes == facts.bytes > 0
        assert (result.runtime["name"], result.runtime["threads"]) == ("torch", 1)
        assert result.runtime["precision"] == "float32"
        assert (result.workload.repetitions, result.workload.warmup) == (2, 1)
        assert Result.parse(json.loads(json.dumps(result.to_json())), "result") == result


def test_every_raw_sample_is_there_and_the_figures_come_from_them(
    ran: tuple[list[Result], list[tuple[float, str]]],
) -> None:
    prompt, both = ran[0]
    assert [(s.phase, s.tokens, s.repetition) for s in prompt.samples] == [
        ("load", 1, 0), ("first", 1, 0), ("prefill", 16, 0), ("prefill", 16, 1)
    ]  # fmt: skip
    assert [(s.phase, s.token) for s in both.samples] == 2 * [
        ("prefill", None), ("decode", 0), ("decode", 1), ("decode", 2)
    ]  # fmt: skip
    for result in (prompt, both):
        assert all(s.ns > 0 for s in result.samples)
        expected = latency_metrics(result.samples)
        assert {k: result.metrics[k] for k in expected} == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads procfs")
def test_memory_is_of_a_fresh_process(ran: tuple[list[Result], list[tuple[float, str]]]) -> None:
    prompt, both = ran[0]
    for result in (prompt, both):
        memory = result.memory
        assert memory is not None
        assert memory.counter == "VmHWM"
        assert memory.peak_bytes is not None
        assert memory.baseline_bytes is not None
        assert memory.peak_bytes > memory.baseline_bytes > 10 << 20
        assert len(result.metrics["rss_bytes_by_repetition"]) == 2
    assert both.memory.peak_bytes >= prompt.memory.peak_bytes  # type: ignore[union-attr, operator]


def test_energy_has_a_figure_or_a_reason(ran: tuple[list[Result], list[Any]]) -> None:
    for result in ran[0]:
        assert result.energy is not None
        assert (result.energy.joules is None) == bool(result.energy.reason)


def test_the_process_imported_torch_and_no_other_runtime(ran: tuple[list[Result], Any]) -> None:
    libraries = set(ran[0][0].runtime["libraries"])
    assert {"torch", "transformers"} <= libraries
    assert not libraries & {"onnxruntime", "executorch", "coremltools"}


def test_progress_adds_up_to_one(ran: tuple[list[Result], list[tuple[float, str]]]) -> None:
    _, seen = ran
    assert sum(share for share, _ in seen) == pytest.approx(1.0)
    assert len(seen) >= 2
    assert {note for _, note in seen} == {"before"}


def test_what_does_not_fit_is_refused_before_a_process_starts(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="needs 129 positions, but the context has 128"):
        profile.run(checkpoint, workloads=["pp100+tg29"])


def test_an_artifact_of_a_checkpoint_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="'onnx' was asked for, but .* is a checkpoint"):
        profile.run(checkpoint, artifacts=["onnx"])


def test_a_path_that_is_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        profile.run(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="is a file"):
        profile.run(tmp_path / "file")


CPUINFO = """processor : 0
model name : Example CPU 3000
flags : fpu vme {flag}

processor : 1
model name : Example CPU 3000
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS asks sysctl")
@pytest.mark.parametrize(("flag", "virtual"), [("hypervisor", True), ("sse2", False)])
def test_the_host_is_described_from_procfs(tmp_path: Path, flag: str, virtual: bool) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flag=flag))
    described = HostDevice(proc=tmp_path).describe()
    assert described["cpu"] == "Example CPU 3000"
    assert described["is_virtual"] is virtual
    assert described["cores"] >= 1
    assert described["memory_bytes"] > 1 << 20


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS asks sysctl")
def test_a_processor_without_a_name_is_null_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    described = HostDevice(proc=tmp_path).describe()
    assert described["cpu"] is None
    assert described["cpu_reason"] == "the system does not name its processor"
    assert described["is_virtual"] is None
