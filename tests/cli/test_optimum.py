"""``optimum-cli export mobile``: optimum's own command line, ours behind it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilekit.schema.bundle import open_bundle

OptimumCli = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "optimum.commands.register"
_LAUNCH = """
import sys
from optimum.commands.optimum_cli import main
try:
    main()
finally:
    print("loaded:", *sorted({"mobilekit", "torch", "transformers"} & set(sys.modules)))
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None, reason="optimum is not installed"
)


@pytest.fixture
def optimum_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OptimumCli:
    """Run optimum's own entry point, our file in its namespace as an install would put it."""
    if importlib.util.find_spec(NAMESPACE) is None:  # a checkout that was installed before it
        folder = tmp_path.joinpath("site", *NAMESPACE.split("."))
        shutil.copytree(ROOT / "integrations" / "optimum", folder)
        inherited = os.environ.get("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), inherited]))

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _LAUNCH, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_help_lists_the_command_and_loads_nothing_heavy(optimum_cli: OptimumCli) -> None:
    done = optimum_cli("export", "--help")
    assert done.returncode == 0, done.stderr
    assert "mobile" in done.stdout
    page = optimum_cli("export", "mobile", "--help").stdout
    for option in ("--model", "--out", "--target", "--precision", "Examples:"):
        assert option in page
    assert page.strip().endswith("loaded:")


def test_a_wrong_request_keeps_our_two_lines_and_exit_code(
    optimum_cli: OptimumCli, tmp_path: Path
) -> None:
    given = ["--model", tmp_path / "none", "--target", "onnx", "--out", tmp_path / "b"]
    done = optimum_cli("export", "mobile", *given)
    assert done.returncode == 2
    assert done.stderr.startswith("error: checkpoint")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.slow
def test_it_writes_a_verified_bundle(optimum_cli: OptimumCli, shelf: Path, tmp_path: Path) -> None:
    options = ["--target", "onnx", "--precision", "fp32", "--context-length", "64", "--json"]
    out = tmp_path / "bundle"
    done = optimum_cli("export", "mobile", "--model", shelf / "dense", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(out).manifest
    document, _, _ = done.stdout.rpartition("loaded:")
    assert json.loads(document) == manifest.to_json()
    assert [item.id for item in manifest.artifacts] == ["onnx-cpu-fp32"]
    assert manifest.artifacts[0].parity.passed
