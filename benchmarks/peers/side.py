"""One side of ``peers_export.py``, ours or a peer's, in processes of its own: make, check, serve.

Imports nothing of MobileKit, because a peer's environment does not have it.

    python SCRIPT.py make JOB.json     # writes the artifact, runs it against eager, writes a record
    python SCRIPT.py serve JOB.json    # runs it on request; protocol: see ../decode_worker.py
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Job = dict[str, Any]


class Runner(Protocol):
    """A model that keeps its cache."""

    def reset(self) -> None:
        """Forget everything."""

    def forward(self, tokens: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Return the logits of the last of ``tokens`` (S,), shape (V,)."""


class Side(Protocol):
    """How one tool makes its artifact and runs it."""

    distributions: tuple[str, ...]

    def make(self, job: Job) -> list[Path]:
        """Write the artifact to ``job["out"]`` and return its files."""

    def open(self, job: Job) -> Runner:
        """Open what ``make`` wrote."""


def main(side: Side) -> None:
    """Do what the command line asks."""
    command, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    if command == "serve":
        _serve(side.open(job))
    else:
        Path(job["record"]).write_text(json.dumps(_made(side, job)))


def _made(side: Side, job: Job) -> dict[str, Any]:
    """Return the record of an artifact, or of the step that failed and its reason."""
    record: dict[str, Any] = {"versions": {}}
    for name in side.distributions:
        record["versions"][name] = importlib.metadata.version(name)
    step, started = "export", time.monotonic()
    try:
        files = side.make(job)
        record["seconds"] = time.monotonic() - started
        record["bytes"] = sum(file.stat().st_size for file in files)
        step = "run"
        record.update(_compared(side.open(job), job))
    except (Exception, SystemExit) as error:  # whatever a peer raises is its result
        traceback.print_exc()
        record["reason"] = f"{step}: {first_line(error)}"
    return record


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _compared(runner: Runner, job: Job) -> dict[str, Any]:
    """Feed the reference's text, its first part at once and the rest one by one; compare.

    The logits of the prompt's last token and of every later one are compared with those of eager
    transformers on the whole text, (S, V).
    """
    with np.load(job["reference"]) as kept:
        tokens, expected = kept["tokens"], kept["logits"]
    prompt = job["prompt"]
    runner.reset()
    found = [runner.forward(tokens[:prompt], 0)]
    found += [runner.forward(tokens[i : i + 1], i) for i in range(prompt, len(tokens))]
    wanted = expected[prompt - 1 :]
    errors = np.abs(np.stack(found).astype(np.float64) - wanted)
    same = np.argmax(found, axis=-1) == np.argmax(wanted, axis=-1)
    return {
        "prefill_max_abs": float(errors[0].max()),
        "max_abs": float(errors.max()),
        "top1": float(same.mean()),
        "reference_max_abs": float(np.abs(wanted).max()),
    }


def _serve(runner: Runner) -> None:
    repetition(runner, 2, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        prompt, new = map(int, line.split())
        print(json.dumps(repetition(runner, prompt, new)), flush=True)


def repetition(runner: Runner, prompt: int, new: int) -> dict[str, int]:
    """Run a prompt and new tokens after it, each the most likely one; return nanoseconds."""
    tokens = np.asarray([1 + i % 97 for i in range(prompt)], dtype=np.int64)
    runner.reset()
    start = time.perf_counter_ns()
    token = int(np.argmax(runner.forward(tokens, 0)))
    between = time.perf_counter_ns()
    for i in range(new):
        token = int(np.argmax(runner.forward(np.asarray([token]), prompt + i)))
    return {"prefill_ns": between - start, "decode_ns": time.perf_counter_ns() - between}


def quiet(function: Callable[[], Any]) -> Any:
    """Run a function whose prints would break the protocol on stdout."""
    kept, sys.stdout = sys.stdout, sys.stderr
    try:
        return function()
    finally:
        sys.stdout = kept
