"""Available memory: the least of what the machine and the control groups leave."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from mobilekit.core.memory import (
    available_memory,
    peak_rss_bytes,
    release_freed_memory,
    reset_peak_rss,
)

GB = 10**9


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A procfs of a machine with 16 GB, 8 GB of them available (in kB of 1000 for round sums)."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    total, free = 16 * GB // 1024, 8 * GB // 1024
    (folder / "meminfo").write_text(f"MemTotal: {total} kB\nMemAvailable: {free} kB\n")
    return folder


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def join(proc: Path, line: str) -> None:
    (proc / "self" / "cgroup").write_text(line + "\n")


def test_without_groups_the_machine_decides(proc: Path, tmp_path: Path) -> None:
    found = available_memory(proc, tmp_path / "none")
    assert found is not None
    assert (found.bytes, found.total_bytes, found.source) == (8 * GB, 16 * GB, "MemAvailable")


def test_a_group_of_version_2(proc: Path, tmp_path: Path) -> None:
    join(proc, "0::/app")
    root = tmp_path / "cgroup"
    group(root / "app", memory__max=3 * GB, memory__current=2 * GB)
    found = available_memory(proc, root)
    assert found is not None
    assert (found.bytes, found.total_bytes) == (GB, 3 * GB)
    assert found.source.endswith("app/memory.max")


def test_page_cache_in_a_group_can_be_reclaimed(proc: Path, tmp_path: Path) -> None:
    join(proc, "0::/")
    root = tmp_path / "cgroup"
    group(root, memory__max=3 * GB, memory__current=3 * GB, memory__stat=f"inactive_file {GB}")
    found = available_memory(proc, root)
    assert found is not None
    assert found.bytes == GB


def test_the_tightest_of_nested_groups_decides(proc: Path, tmp_path: Path) -> None:
    join(proc, "0::/outer/inner")
    root = tmp_path / "cgroup"
    group(root / "outer", memory__max=2 * GB, memory__current=GB)
    group(root / "outer" / "inner", memory__max="max", memory__current=GB // 2)
    found = available_memory(proc, root)
    assert found is not None
    assert (found.bytes, found.total_bytes) == (GB, 2 * GB)


def test_a_container_sees_its_own_group_as_the_root(proc: Path, tmp_path: Path) -> None:
    join(proc, "0::/host/only/path")
    root = tmp_path / "cgroup"
    group(root, memory__max=2 * GB, memory__current=GB)
    found = available_memory(proc, root)
    assert found is not None
    assert found.bytes == GB


@pytest.mark.parametrize(("limit", "left"), [(5 * GB, 4 * GB), (2**63 - 4096, 8 * GB)])
def test_a_group_of_version_1(limit: int, left: int, proc: Path, tmp_path: Path) -> None:
    join(proc, "4:memory:/job")
    folder = tmp_path / "cgroup" / "memory" / "job"
    group(folder, memory__limit_in_bytes=limit, memory__usage_in_bytes=GB)
    found = available_memory(proc, tmp_path / "cgroup")
    assert found is not None
    assert found.bytes == left


def test_what_this_process_holds_is_counted_as_its_own(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "status").write_text(f"VmHWM: 9 kB\nVmRSS: {GB // 1024} kB\n")
    found = available_memory(proc, tmp_path / "none")
    assert found is not None
    assert found.bytes // 10**6 == 8999  # kB of 1024 bytes


def test_another_system_says_nothing(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) is None


def test_the_peak_of_this_process_can_start_anew() -> None:
    if peak_rss_bytes() is None or not reset_peak_rss():
        pytest.skip("this system has no peak, or does not let it be reset")
    before = peak_rss_bytes()
    block = mmap.mmap(-1, 64 << 20)  # malloc could hand out pages that are resident already
    for page in range(0, len(block), 4096):
        block[page] = 1
    after = peak_rss_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 32 << 20
    block.close()
    reset_peak_rss()
    again = peak_rss_bytes()
    assert again is not None
    assert again < after


def resident_bytes() -> int:
    reset_peak_rss()
    return peak_rss_bytes() or 0


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what was freed")
def test_freed_memory_goes_back_to_the_system() -> None:
    if peak_rss_bytes() is None or not reset_peak_rss():
        pytest.skip("this system has no peak, or does not let it be reset")
    blocks = [b"x" * 16_000 for _ in range(4096)]  # too small for pages of their own
    last = b"x" * 16_000  # what lies above it, the library gives back by itself
    del blocks
    before = resident_bytes()
    release_freed_memory()
    assert before - resident_bytes() > 32 << 20
    assert len(last) == 16_000
