"""Searches in processes of their own: killed at any moment, and spread over ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilekit.compress.evolution import fanned_out
from mobilekit.core.errors import UsageError

from .toy import SETTINGS, START, search, told

TOY = Path(__file__).with_name("toy.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def start(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a search of the toy problem."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(TOY), str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # the machine's own name need not resolve: all ranks are here
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )


def generations(folder: Path) -> int:
    """How many are written down."""
    path = folder / "search.json"
    return int(json.loads(path.read_text())["generation"]) if path.exists() else 0


def kill_after(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Kill a search once it has written ``count`` generations."""
    deadline = time.monotonic() + 120
    while generations(folder) < count and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a search that ends well and return what it printed to stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == ""
    return err


def test_a_killed_search_goes_on_to_the_same_result(tmp_path: Path) -> None:
    kill_after(start(tmp_path, "--seconds", "0.03"), tmp_path, 3)
    assert 3 <= generations(tmp_path) < SETTINGS.generations
    assert told(search(tmp_path / "search.json")) == told(search(None))


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    draws = random.Random(0)
    for _ in range(4):
        process = start(tmp_path, "--seconds", "0.05")
        before = generations(tmp_path)
        kill_after(process, tmp_path, before + draws.randint(1, 2))
    ended(start(tmp_path))
    assert json.loads((tmp_path / "rank0.json").read_text()) == told(search(None))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_ends_with_the_same_state_on_each(ranks: int, tmp_path: Path) -> None:
    shown = ended(start(tmp_path, "--seconds", "0.01", launcher=(*TORCHRUN, str(ranks))))
    alone = told(search(tmp_path / "alone.json"))
    for rank in range(ranks):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == alone
    assert shown.count("  search\n") == 1
    stored, own = ((tmp_path / name) for name in ("search.json", "alone.json"))
    assert _without_times(stored) == _without_times(own)


def _without_times(path: Path) -> object:
    record = json.loads(path.read_text())
    for entry in record["history"]:
        del entry["seconds"]
    return record


@pytest.mark.slow
def test_ranks_go_on_from_the_state_of_one_process(tmp_path: Path) -> None:
    kill_after(start(tmp_path, "--seconds", "0.03"), tmp_path, 3)
    ended(start(tmp_path, launcher=(*TORCHRUN, "2")))
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == told(search(None))


@pytest.mark.slow
def test_where_one_rank_fails_nobody_waits_for_it(tmp_path: Path) -> None:
    process = start(tmp_path, "--fail-on-rank", "1", launcher=(*TORCHRUN, "2"))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "this rank ran into trouble" in err
    assert "rank 1 failed in stage 0 of generation 2" in err
    assert generations(tmp_path) == 2


@pytest.mark.slow
def test_a_state_that_cannot_be_read_ends_every_rank(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{")
    process = start(tmp_path, launcher=(*TORCHRUN, "2"))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "is not valid JSON" in err
    assert "rank 0 failed while the others waited" in err


def test_processes_of_torchrun_that_are_not_joined_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun started 2 processes, but they are not joined"):
        fanned_out(lambda candidate, generation, stage: 0.0)([START], 0, 0)
