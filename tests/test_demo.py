"""The demo, run once as a user would, held to what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import mobilekit as mk
from mobilekit.core.files import sha256_file
from mobilekit.data.tokenizer import load_tokenizer
from mobilekit.runtime.generate import greedy
from mobilekit.runtime.torch import TorchRuntime
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.manifest import Manifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "mobilekit", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert done.stdout.strip().endswith(f"Report {out / 'report.html'}")
    return out


@pytest.fixture(scope="session")
def manifest(demo: Path) -> Manifest:
    return open_bundle(demo / "bundle").manifest


def test_every_target_is_there_in_both_precisions_and_within_tolerance(manifest: Manifest) -> None:
    found = {(item.format, item.precision): item for item in manifest.artifacts}
    assert set(found) == {(f, p) for f in ("pte", "onnx", "mlpackage") for p in ("fp32", "int8")}
    assert all(item.parity.executed and item.parity.passed for item in found.values())


def test_int8_is_stored_in_int8(manifest: Manifest) -> None:
    for item in manifest.artifacts:
        if item.precision == "int8":
            assert item.weights.share_at_precision >= 0.95, item.id
            full = next(
                i for i in manifest.artifacts if i.format == item.format and i.precision == "fp32"
            )
            assert item.total_bytes < 0.4 * full.total_bytes


def test_fp32_files_say_what_eager_says(manifest: Manifest) -> None:
    for item in manifest.artifacts:
        if item.precision == "fp32" and item.format != "mlpackage":
            parity = item.parity
            assert parity.against_fp32 is not None
            assert parity.greedy is not None
            assert parity.against_fp32.max_abs <= 1e-3
            assert (parity.greedy.prompts, parity.greedy.new_tokens) == (8, 64)
            assert parity.greedy.different == 0


@pytest.mark.parametrize("target", ["executorch", "onnx"])
def test_own_greedy_text_is_eagers(demo: Path, target: str) -> None:
    """Generated freely, not along eager's tokens as the parity vectors are."""
    eager = TorchRuntime(mk.load(demo / "checkpoint", device="cpu", dtype="float32"))
    runtime = mk.runtime.open(demo / "bundle", target, precision="fp32")
    tokenizer = load_tokenizer(demo / "checkpoint")
    for text in ("Return the ", "class Path:", "The module defines"):
        gaps: list[float] = []

        def keep(logits: np.ndarray, gaps: list[float] = gaps) -> None:
            low, high = np.partition(logits, -2)[-2:]
            gaps.append(float(high - low))

        prompt = tokenizer.encode(text)
        expected = greedy(eager, prompt, 64, on_logits=keep)
        given = greedy(runtime, prompt, 64)
        differs = [i for i, (a, b) in enumerate(zip(expected, given, strict=True)) if a != b]
        assert not differs or gaps[differs[0]] < 1e-3


def test_both_checkpoints_reload_bit_exactly_and_in_plain_transformers(demo: Path) -> None:
    ids = torch.arange(40)[None]
    for path in (demo / "compressed", demo / "checkpoint"):
        ours, plain = mk.load(path), AutoModelForCausalLM.from_pretrained(path)
        plain.set_experts_implementation("eager")
        assert plain.config.num_experts == 12
        with torch.no_grad():
            assert torch.equal(ours(ids).logits, plain(ids).logits)


def test_verify_repeats_it_and_a_changed_byte_fails(demo: Path, manifest: Manifest) -> None:
    def verify() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mobilekit", "verify", str(demo / "bundle"), "--json"]
        return subprocess.run(command, capture_output=True, text=True)

    good = verify()
    assert good.returncode == 0, good.stderr
    assert all(record["passed"] for record in json.loads(good.stdout).values())
    path = demo / "bundle" / manifest.artifacts[0].files[0].path
    data = path.read_bytes()
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    path.write_bytes(changed)
    try:
        bad = verify()
    finally:
        path.write_bytes(data)
    assert bad.returncode == 1
    assert "has changed" in bad.stderr
    assert len(bad.stderr.strip().splitlines()) == 2


def test_a_second_demo_finds_everything_done(demo: Path) -> None:
    before = {p.name: sha256_file(p) for p in (demo / "results").iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "mobilekit", "demo", "--out", str(demo)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(step["cached"] for step in json.loads((demo / "run.json").read_text())["steps"])
    assert {p.name: sha256_file(p) for p in (demo / "results").iterdir()} == before
