"""Tiny checkpoints on disk, uniform and not, a text, and recovery training as a process."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import Mamba2Config, Mamba2ForCausalLM

from mobilekit.models import save
from mobilekit.models.lineage import Provenance, record
from mobilekit.models.surgery import restructure_
from mobilekit.models.tiny import TINY_MODELS
from mobilekit.schema.plan import KeepEdit, Plan

# name -> units kept in each layer: no two layers alike
UNEVEN: dict[str, tuple[str, list[list[int]]]] = {
    "olmoe": ("expert", [[0, 1, 2, 5, 7], [1, 3, 4]]),
    "mamba2": ("ssm", [[0, 1, 2, 3], [1, 2]]),
}


def uneven(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of which each layer keeps other units, with the plan that says so."""
    if name == "mamba2":  # heads can be removed where they share one B and C
        config = Mamba2Config(**{**TINY_MODELS[name][1], "n_groups": 1})
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = Mamba2ForCausalLM(config).eval()
    unit, kept = UNEVEN[name]
    edits = [KeepEdit(unit=unit, layer=i, indices=tuple(k)) for i, k in enumerate(kept)]
    smaller = copy.deepcopy(model)
    restructure_(smaller, edits)
    plan = Plan(method="none", method_version=1, config={}, seed=0, parent=None, edits=edits)
    record(smaller, Provenance(None, (plan,)))
    return smaller


@pytest.fixture(scope="session")
def checkpoint(
    tiny: Callable[[str], nn.Module], byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Write the tiny model of a name; "NAME-uneven" keeps other units in each layer."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def write(name: str) -> Path:
        plain = name.removesuffix("-uneven")
        model = copy.deepcopy(tiny(plain)) if name == plain else uneven(tiny(plain), plain)
        out = save(model, root / name)
        for file in byte_tokenizer.iterdir():
            shutil.copyfile(file, out / file.name)
        return out

    return write


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file from which there is something to learn."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("The quick brown fox. " * 300 + "jumps over the lazy dog! " * 300)
    return path


def command(ranks: int, *arguments: str | Path) -> list[str]:
    """Return the command line of ``mobilekit recover``, under torchrun on several ranks."""
    own = ["mobilekit", "recover", *map(str, arguments)]
    if ranks == 1:
        return [sys.executable, "-m", *own]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # not --standalone, which needs the machine's own name to resolve
    meeting = ["--rdzv-backend", "static", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", *meeting]
    return [*launcher, "--nproc-per-node", str(ranks), "--module", *own]


def _foreground() -> None:  # a background job of a shell ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(ranks: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start ``mobilekit recover`` in a process group of its own, one thread a process."""
    return subprocess.Popen(
        command(ranks, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        start_new_session=True,
        preexec_fn=_foreground,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a process that was asked for ``--json``, and return what it printed."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(out)
    return found


def steps_saved(state: Path) -> int:
    """Return how many steps a state has behind it; 0 where there is none yet."""
    if not state.exists():
        return 0
    with safe_open(state, framework="pt") as stored:
        return len(json.loads(stored.metadata()["result"])["losses"])


def stop_at(
    process: subprocess.Popen[str], state: Path, step: int, number: signal.Signals
) -> tuple[str, str]:
    """Send a signal to a process, and kill its children with it, once so many steps are saved."""
    deadline = time.monotonic() + 240
    while steps_saved(state) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    # torchrun passes on what asks it to stop, but its ranks outlive it when it is killed
    children = _children(process.pid) if number == signal.SIGKILL else []
    for pid in (process.pid, *children):
        os.kill(pid, number)
    return process.communicate(timeout=120)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found
