"""Import a part's packages for real, each part in a process of its own.

Metadata cannot tell a broken install: a missing library, a wheel of another platform.

``python -m mobilekit.doctor.probe PART ANSWER.json`` writes what it found; a crash writes nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilekit.core.files import atomic_write_json, read_json

LIMIT_SECONDS = 180.0  # importing took up to 25 s on a busy machine
_POLL_SECONDS = 0.05

# what the export of each part imports
IMPORTS = {
    "core": ("torch", "transformers", "safetensors.torch", "tokenizers"),
    "executorch": (
        "executorch.exir",
        "executorch.backends.xnnpack.partition.xnnpack_partitioner",
        "torchao.quantization",
    ),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "coreml": ("coremltools", "sklearn"),
}


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        broken: Why the packages cannot be imported, or ``None``.
        cannot_run: Why an artifact cannot be run by its own runtime here, or ``None``.
        facts: What else the part says of itself (GPUs, providers).
        seconds: Time that the imports took.
    """

    broken: str | None
    cannot_run: str | None
    facts: dict[str, Any]
    seconds: float


def probe(
    parts: list[str], *, limit: float = LIMIT_SECONDS, on_done: Callable[[str], None]
) -> dict[str, Finding]:
    """Probe several parts at a time, each in a process of its own.

    Args:
        parts: Keys of ``IMPORTS``.
        limit: Seconds after which a probe is stopped.
        on_done: Called with each part as it is finished.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mobilekit-doctor-") as folder:
        answers = {part: Path(folder) / f"{part}.json" for part in parts}
        running = {part: _start(part, answers[part]) for part in parts}
        found: dict[str, Finding] = {}
        try:
            while running:
                late = time.monotonic() - started > limit
                for part, process in list(running.items()):
                    if process.poll() is None and not late:
                        continue
                    del running[part]
                    _stop(process)
                    seconds = time.monotonic() - started
                    found[part] = _finding(answers[part], process.returncode, seconds, late, limit)
                    on_done(part)
                time.sleep(_POLL_SECONDS)
        finally:
            for process in running.values():
                _stop(process)
    return {part: found[part] for part in parts}


def _start(part: str, answer: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, part, str(answer)],  # -P: no code from the cwd
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
            return
        process.kill()
    process.wait()


def _finding(answer: Path, code: int, seconds: float, late: bool, limit: float) -> Finding:
    if answer.is_file():
        return Finding(**read_json(answer))
    reason = f"importing it crashed the process (exit code {code})"
    if late:
        reason = f"importing it did not end within {limit:g} s"
    return Finding(reason, None, {}, round(seconds, 3))


def main(part: str, answer: str) -> int:
    """Import one part and write what was found."""
    started = time.monotonic()
    broken = _import_all(IMPORTS[part])
    facts: Mapping[str, Any] = {}
    cannot_run = None
    if broken is None:
        try:
            cannot_run, facts = _RUNS[part]()
        except Exception as error:
            cannot_run = _line(error)
    found = {
        "broken": broken,
        "cannot_run": cannot_run,
        "facts": dict(facts),
        "seconds": round(time.monotonic() - started, 3),
    }
    atomic_write_json(Path(answer), found)
    return 0


def _import_all(modules: tuple[str, ...]) -> str | None:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken install raises anything at all
            return f"importing {module}: {_line(error)}"
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _run_core() -> tuple[str | None, dict[str, Any]]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return None, {"gpus": names, "threads": torch.get_num_threads()}


def _run_executorch() -> tuple[str | None, dict[str, Any]]:
    import executorch.kernels.quantized  # noqa: F401 - registers the kernels of int8 embeddings
    from executorch.runtime import Runtime

    registry = Runtime.get().backend_registry
    names = sorted(registry.registered_backend_names)
    ready = registry.is_available("XnnpackBackend")
    return None if ready else "its runtime has no XNNPACK back end", {"backends": names}


def _run_onnx() -> tuple[str | None, dict[str, Any]]:
    import onnxruntime

    names = onnxruntime.get_available_providers()
    ready = "CPUExecutionProvider" in names
    return None if ready else "onnxruntime has no CPU provider", {"providers": list(names)}


def _run_coreml() -> tuple[str | None, dict[str, Any]]:
    if sys.platform == "darwin":
        return None, {"macos": platform.mac_ver()[0]}
    return "Core ML runs on macOS and iOS only", {}


_RUNS = {
    "core": _run_core,
    "executorch": _run_executorch,
    "onnx": _run_onnx,
    "coreml": _run_coreml,
}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(sys.argv[1], sys.argv[2]))
