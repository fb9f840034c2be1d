from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.profile.meters.contention import CpuTimes, cpu_times, other_work, waited_ns


def test_the_second_counter_is_the_waiting(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("123456 789 42\n")
    assert waited_ns(tmp_path) == 789


@pytest.mark.parametrize("text", [None, "", "1 2", "1 x 3"])
def test_a_system_that_does_not_count_gives_null(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "schedstat").write_text(text)
    assert waited_ns(tmp_path) is None


def _proc(folder: Path, cpu: str, loadavg: str = "1.0 1.0 1.0 3/101 7\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{cpu}\ncpu0 1 2 3\n")
    (folder / "loadavg").write_text(loadavg)
    return folder


def _times(folder: Path, cpu: str, *, own: float, wall: float) -> CpuTimes:
    return dataclasses.replace(cpu_times(_proc(folder, cpu)), own=own, wall=wall)


def test_what_others_used_is_the_busy_time_less_our_own(tmp_path: Path) -> None:
    # 2 CPUs, 10 s: 12 s busy (user, nice, system, irq, softirq, steal), 7 s of them ours
    first = _times(tmp_path, "cpu 100 10 10 500 50 0 0 5 99 99", own=1.0, wall=100.0)
    last = _times(tmp_path, "cpu 1000 110 110 1300 50 20 30 55 99 99", own=8.0, wall=110.0)
    found = other_work(first, last, cpus=2, ticks_per_second=100)
    busy = (900 + 100 + 100 + 20 + 30 + 50) / 100
    assert found["cpu_share"] == pytest.approx((busy - 7) / 20)
    assert found["steal_share"] == pytest.approx(0.5 / 20)
    assert found["resolution"] == pytest.approx(6 * 0.01 / 20)
    assert (found["seconds"], found["cpus"]) == (10.0, 2)
    assert (found["runnable"], found["reason"]) == ([2, 2], None)


@given(st.lists(st.integers(0, 10**6), min_size=8, max_size=8), st.floats(0, 1e4))
def test_shares_are_shares_whatever_the_counters_do(spent: list[int], own: float) -> None:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    first = CpuTimes(dict.fromkeys(names, 0), 0.0, 0.0, None)
    last = CpuTimes(dict(zip(names, spent, strict=True)), own, 3.0, None)
    found = other_work(first, last, cpus=2, ticks_per_second=100)
    for name in ("cpu_share", "steal_share", "resolution"):
        assert 0 <= found[name] <= 1


@pytest.mark.parametrize(
    "cpu", [None, "", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e f g h"]
)
def test_without_counters_the_share_is_null_with_a_reason(tmp_path: Path, cpu: str | None) -> None:
    if cpu is not None:
        _proc(tmp_path, cpu, "nonsense")
    times = cpu_times(tmp_path)
    assert (times.ticks, times.runnable) == (None, None)
    found = other_work(times, times)
    assert found["cpu_share"] is None
    assert "/proc/stat" in found["reason"]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="counters of Linux")
def test_our_own_work_is_not_taken_for_that_of_others() -> None:
    before = cpu_times()
    while cpu_times().own < before.own + 0.3:
        pass
    after = cpu_times()
    assert before.ticks is not None
    assert after.ticks is not None
    busy = sum(after.ticks[name] - before.ticks[name] for name in after.ticks)
    assert busy > 0
    share = other_work(before, after)["cpu_share"]
    whole = (after.wall - before.wall) * (os.cpu_count() or 1)
    # the 0.3 s are subtracted: with them the share would be larger by this much
    assert share <= 1 - 0.3 / whole + other_work(before, after)["resolution"]
