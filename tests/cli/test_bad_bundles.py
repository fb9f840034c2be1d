"""Bundles that are damaged, or asked for what they do not hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Refused, Said, edit_json, flip_a_byte

PROFILE = ["--workload", "pp8", "--repetitions", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.onnx", "genai_config.json"])
def test_a_bundle_with_a_changed_byte(file: str, bundle: Path, refused: Refused) -> None:
    flip_a_byte(bundle / "onnx-cpu-fp32" / file)
    words = f"onnx-cpu-fp32/{file} has changed"
    refused(["verify", bundle, "--json"], words, code=1)
    refused(["profile", bundle, *PROFILE, "--out", "new"], words)
    refused(["evaluate", bundle, "--out", "new"], words)


@pytest.mark.slow
def test_a_bundle_with_a_changed_tokenizer(bundle: Path, refused: Refused) -> None:
    flip_a_byte(bundle / "tokenizer" / "tokenizer.json")
    refused(["verify", bundle], "tokenizer/tokenizer.json has changed", code=1)
    refused(["evaluate", bundle], "tokenizer/tokenizer.json has changed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["artifacts"][0]["files"][0].update(path="../model.onnx"), "leaves the"),
        (lambda m: m["tokenizer"][0].update(path="/etc/hostname"), "leaves the directory"),
        (lambda m: m.update(schema="mobilekit.bundle/2"), "Update MobileKit"),
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
    ],
    ids=["parent", "absolute", "newer", "unknown key"],
)
def test_a_bundle_with_a_bad_manifest(
    change: Callable[[Any], object], words: str, bundle: Path, refused: Refused
) -> None:
    edit_json(bundle / "manifest.json", change)
    refused(["verify", bundle, "--json"], words)
    refused(["profile", bundle, *PROFILE], words)
    refused(["evaluate", bundle], words)


@pytest.mark.slow
def test_a_damaged_zip_of_a_bundle(bundle: Path, tmp_path: Path, refused: Refused) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle))
    os.truncate(archive, archive.stat().st_size // 2)
    refused(["verify", archive], "bundle")
    (bundle / "manifest.json").unlink()
    refused(["verify", bundle], "is not a bundle")


@pytest.mark.slow
def test_another_checkpoint_cannot_explain_a_bundle(
    bundle: Path, shelf: Path, refused: Refused
) -> None:
    refused(["verify", bundle, "--model", shelf / "moe"], "is not the checkpoint that")


@pytest.mark.slow
def test_more_than_the_exported_context_holds(
    bundle: Path, refused: Refused, mobilekit: Callable[..., Said]
) -> None:
    refused(["profile", bundle, "--workload", "pp65"], "needs 65 positions", "at most 64")
    refused(["profile", bundle, "--workload", "pp60+tg5"], "needs 65 positions")
    window = ["--suite", "perplexity", "--set", "window=99"]
    refused(["evaluate", bundle, *window], "a window of 99 tokens")
    refused(["evaluate", bundle, "--artifact", "onnx-cpu-fp23"], "did you mean 'onnx-cpu-fp32'?")
    refused(["verify", bundle, "--artifact", "onnx-cpu-fp23"], "did you mean 'onnx-cpu-fp32'?")
    refused(["verify", bundle, "--model", "absent/there"], "does not exist")
    said = mobilekit("evaluate", bundle, "--suite", "mobile_mmlu")
    assert "longer than the context" in said.out
