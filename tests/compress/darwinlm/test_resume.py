"""A search that is killed, or dealt over processes, comes to the same checkpoint."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import mobilekit as mk

pytestmark = pytest.mark.slow

SETTINGS = (
    "levels=5",
    "channel_multiple=8",
    "offspring=4",
    "generations=6",
    "survivors=[2,1]",
    "fitness_tokens=[64,128]",
    "fitness_pool=1024",
    "finetune_tokens=[64,64]",
    "finetune_pool=1024",
    "finetune_learning_rate=0.001",
    "calibration_tokens=1024",
    "calibration_length=16",
    "tolerance=0.2",
)


@pytest.fixture
def dense(tiny: Callable[[str], nn.Module], byte_tokenizer: Path, tmp_path: Path) -> Path:
    path = tmp_path / "dense"
    mk.save(tiny("qwen3"), path)
    shutil.copytree(byte_tokenizer, path, dirs_exist_ok=True)
    return path


def command(dense: Path, text: Path, out: Path) -> list[str]:
    settings = [part for name in SETTINGS for part in ("--set", name)]
    given = ["--method", "darwinlm", *settings, "--set", f"calibration_data={text}"]
    return ["-m", "mobilekit", "compress", str(dense), *given, "--out", str(out)]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "MOBILEKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(cache), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def digest(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    words: list[Any] = [
        f"line {i} of {i * i % 97} words about {i % 13} things\n" for i in range(400)
    ]
    path.write_text("".join(words))
    return path


def test_a_killed_search_goes_on_to_the_same_checkpoint(
    dense: Path, text: Path, tmp_path: Path
) -> None:
    run(command(dense, text, tmp_path / "whole"), tmp_path / "cache-whole")
    cache, out, kills = tmp_path / "cache-killed", tmp_path / "killed", 0
    marks = ("layer-001.channel.safetensors", "search-*.json", "search-*.json")
    for mark in marks:  # in the middle of the database, then of the search, twice
        process = subprocess.Popen(
            [sys.executable, *command(dense, text, out)],
            env=environment(cache),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        _wait_for(cache, mark, process)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    assert not out.exists()
    run(command(dense, text, out), cache)
    assert digest(out) == digest(tmp_path / "whole")


def _wait_for(cache: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file that matches is new or newer, or the process has ended."""
    began = time.time()
    while process.poll() is None:
        if any(file.stat().st_mtime > began for file in cache.glob(f"darwinlm/*/{pattern}")):
            return
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_come_to_the_same_checkpoint(
    ranks: int, dense: Path, text: Path, tmp_path: Path
) -> None:
    run(command(dense, text, tmp_path / "alone"), tmp_path / "cache-alone")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(29_600 + ranks)]
    arguments = command(dense, text, tmp_path / "together")
    run([*launcher, *meeting, *arguments], tmp_path / "cache-together")
    assert digest(tmp_path / "together") == digest(tmp_path / "alone")
