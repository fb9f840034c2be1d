"""A hub on loopback, and a bundle of real files with a true manifest to move about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilekit.core.files import atomic_write_json, sha256_file
from mobilekit.schema.manifest import FileRecord, Manifest

from .server import LARGE, Hub, serving


def write_bundle(root: Path, artifacts: dict[str, bytes]) -> Path:
    """Write a bundle with one file an artifact; what the files hold is nobody's model."""
    parity = {
        "executed": False,
        "reason": "these bytes are no program",
        "tolerance": {"max_abs": 1e-3, "kl": 1e-4, "kl_p90": 1e-4, "top1": 0.99},
    }
    described = []
    for name, data in artifacts.items():
        path = root / name / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        described.append(
            {
                "id": name,
                "format": "onnx",
                "backend": "cpu",
                "precision": "fp32",
                "runtime": {"name": "onnxruntime", "min": "1.32"},
                "files": [record(root, path)],
                "programs": {},
                "weights": {"bytes_by_dtype": {"float32": len(data)}, "share_at_precision": 1},
                "parity": parity,
            }
        )
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')
    (root / "licences").mkdir()
    (root / "licences" / "LICENSE").write_text("Do as you like.\n")
    manifest = {
        "schema": "mobilekit.bundle/1",
        "task": "causal-lm",
        "interface": "token-logits/1",
        "model": {"class": "Qwen3ForCausalLM", "context_length": 64, "vocab_size": 256},
        "artifacts": described,
        "tokenizer": [record(root, root / "tokenizer" / "tokenizer.json")],
        "licences": ["apache-2.0"],
        "licence_texts": [record(root, root / "licences" / "LICENSE")],
    }
    atomic_write_json(root / "manifest.json", Manifest.parse(manifest, "m").to_json())
    return root


def record(root: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(root).as_posix()
    made = FileRecord(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))
    return made.model_dump()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    large = bytes(range(256)) * (2 * LARGE // 256)
    return write_bundle(tmp_path / "bundle", {"onnx-cpu-fp32": large, "onnx-cpu-tiny": b"small"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of its own, a client that has no token of the user's, and plain LFS transfers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving() as served:
        yield served
