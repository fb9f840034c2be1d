from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilekit.profile.job import Measured
from mobilekit.profile.latency import slope
from mobilekit.profile.meters.memory import NoMeter, RusageMeter, StatusMeter, memory_meter

MIB = 1 << 20
SCRIPT = Path(__file__).with_name("known_memory.py")
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads procfs")


def measured(loaded: int, leak: int) -> Measured:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(loaded), str(leak)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Measured.model_validate_json(done.stdout)


@linux
def test_a_model_of_256_mib_raises_the_peak_by_that() -> None:
    memory = measured(256, 0).memory
    assert memory.counter == "VmHWM"
    assert memory.reason is None
    assert memory.peak_bytes is not None
    assert memory.baseline_bytes is not None
    assert 256 * MIB <= memory.peak_bytes - memory.baseline_bytes <= (256 + 40) * MIB


@linux
def test_a_leak_of_8_mib_a_repetition_is_its_slope() -> None:
    rss = measured(16, 8).rss_bytes
    assert rss is not None
    assert len(rss) == 4
    assert slope(rss) == pytest.approx(8 * MIB, rel=0.1)


def fixture_proc(root: Path, **fields: Any) -> Path:
    lines = ["Name:\tpython", *[f"{key}:\t  {value} kB" for key, value in fields.items()]]
    (root / "status").write_text("\n".join(lines))
    return root


def test_the_status_file_is_read_in_bytes(tmp_path: Path) -> None:
    meter = StatusMeter(fixture_proc(tmp_path, VmHWM=3000, VmRSS=2000))
    assert meter.peak() == 3000 * 1024
    assert meter.current() == 2000 * 1024
    assert meter.reason is None
    (tmp_path / "clear_refs").write_text("")
    assert meter.reset() is True
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_a_system_that_hides_the_peak_gives_null_and_the_reason(tmp_path: Path) -> None:
    meter = StatusMeter(fixture_proc(tmp_path, VmRSS=2000))
    assert meter.peak() is None
    assert meter.reason == "no VmHWM in the process status"
    assert StatusMeter(tmp_path / "nothing").current() is None


def test_a_reset_that_is_refused_is_told(tmp_path: Path) -> None:
    assert StatusMeter(tmp_path / "nothing").reset() is False


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_the_fallback_counter_agrees_with_the_status_file() -> None:
    meter = RusageMeter()
    peak = meter.peak()
    assert peak is not None
    assert peak > 10 * MIB
    assert (meter.reset(), meter.current(), meter.counter) == (False, None, "ru_maxrss")
    best = memory_meter()
    if isinstance(best, StatusMeter):
        now = best.current()
        assert now is not None
        assert peak >= now * 0.99


def test_no_counter_is_null_with_the_reason() -> None:
    meter = NoMeter("no memory counter is read on Windows")
    assert (meter.peak(), meter.current(), meter.reset()) == (None, None, False)
    assert meter.reason == "no memory counter is read on Windows"
