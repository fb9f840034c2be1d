"""A broken install is found by importing it: each test puts one first on the path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobilekit.doctor.probe import Finding, probe


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that shadows the installed packages of a probe's process."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(tmp_path), *([inherited] if inherited else [])])
    monkeypatch.setenv("PYTHONPATH", path)
    for name in ("onnx", "onnxscript"):
        (tmp_path / f"{name}.py").touch()
    return tmp_path


def probe_onnx(limit: float = 60) -> Finding:
    seen: list[str] = []
    found = probe(["onnx"], limit=limit, on_done=seen.append)
    assert seen == ["onnx"]
    return found["onnx"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('libfoo.so.1: cannot open')", "OSError: libfoo.so.1: cannot open"),
        ("import no_such_module", "importing onnxruntime: ModuleNotFoundError"),
        ("import os; os.abort()", "crashed the process (exit code -6)"),
    ],
)
def test_a_broken_install(code: str, reason: str, install: Path) -> None:
    (install / "onnxruntime.py").write_text(code)
    found = probe_onnx()
    assert found.broken is not None
    assert reason in found.broken


def test_an_import_that_hangs_is_stopped(install: Path) -> None:
    (install / "onnxruntime.py").write_text("import time; time.sleep(600)")
    found = probe_onnx(limit=0.5)
    assert found.broken == "importing it did not end within 0.5 s"


def test_an_install_that_imports_but_cannot_compute(install: Path) -> None:
    (install / "onnxruntime.py").write_text("get_available_providers = lambda: ['Azure']")
    found = probe_onnx()
    assert found.broken is None
    assert found.cannot_run == "onnxruntime has no CPU provider"
