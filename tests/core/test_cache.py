from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mobilekit.core.cache import cache_root, is_held, remove_abandoned, scratch_directory
from mobilekit.core.files import locked


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path))


HOLD = """
import sys, time
from mobilekit.core.cache import scratch_directory
with scratch_directory("profile") as folder:
    (folder / "job.json").write_text("{}")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_at_the_next_run_and_what_lives_stays() -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        other = Path(process.stdout.readline().strip())
        with scratch_directory("profile") as mine:
            assert other.is_dir()
            assert list(mine.iterdir()) == [mine / "lock"]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert other.is_dir()
        with scratch_directory("profile"):
            assert not other.exists()
    assert [p.name for p in (cache_root() / "scratch").iterdir()] == ["profile.lock"]


def test_an_unfinished_entry_goes_only_when_its_owner_is_gone(tmp_path: Path) -> None:
    for name in (".abc.x1", ".def.y2", "ghi"):
        (tmp_path / name).mkdir()
    with locked(tmp_path / "abc.lock"):
        assert is_held(tmp_path / "abc.lock")
        remove_abandoned(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".abc.x1", "abc.lock", "ghi"]
    remove_abandoned(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["abc.lock", "ghi"]
