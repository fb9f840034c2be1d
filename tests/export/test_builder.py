"""A whole bundle of one target, built once: sealed, reopened, verified, and broken on purpose."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mobilekit.export.facts import model_facts
from mobilekit.export.parity import verify
from torch import nn

import mobilekit as mk
from mobilekit.core.errors import CheckFailedError, MobileKitError, UnsupportedModelError
from mobilekit.core.files import atomic_write_json, sha256_file
from mobilekit.models import max_positions
from mobilekit.models.families import family_of
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.manifest import Manifest

CONTEXT = 96


@pytest.fixture(scope="session")
def checkpoint(
    tiny_qwen3_moe: nn.Module, byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    mk.save(tiny_qwen3_moe, folder)
    shutil.copytree(byte_tokenizer, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# tiny\n")
    (folder / "LICENSE").write_text("none")
    (folder / "LICENSES").mkdir()
    atomic_write_json(folder / "generation_config.json", {"eos_token_id": [0, 7]})
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "bundle"
    mk.export.build(checkpoint, out, targets=["onnx"], precisions=["fp32"], context_length=CONTEXT)
    return out


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def manifest_of(bundle: Path) -> Manifest:
    return open_bundle(bundle).manifest


def test_a_config_may_leave_what_its_class_has_a_default_for(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["max_position_embeddings"]
    atomic_write_json(tmp_path / "config.json", config)
    facts = model_facts(tmp_path)
    assert max_positions(tmp_path) == 32768
    assert facts.vocab_size == 256


def test_the_manifest_tells_the_whole_story(bundle: Path, checkpoint: Path) -> None:
    manifest = manifest_of(bundle)
    assert (manifest.task, manifest.interface) == ("causal-lm", "token-logits/1")
    assert manifest.model["class"] == "Qwen3MoeForCausalLM"
    assert manifest.model["context_length"] == CONTEXT
    assert manifest.licences == ("cc0-1.0",)
    assert [record.path for record in manifest.licence_texts] == ["licences/LICENSE"]
    assert manifest.model["eos_token_ids"] == [0, 7]
    genai = json.loads((bundle / "onnx-cpu-fp32" / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [0, 7]
    beside = [record.path for record in manifest.artifacts[0].companions]
    assert "onnx-cpu-fp32/tokenizer.json" in beside
    assert manifest.artifacts[0].parity.program is not None
    assert manifest.provenance["checkpoint"] == mk.models.checkpoint_hash(checkpoint)
    (artifact,) = manifest.artifacts
    assert artifact.parity.passed is True
    assert artifact.parity.greedy is not None
    assert artifact.parity.greedy.different == 0
    lowering = artifact.settings["lowering"]
    assert lowering["worker_peak_rss_bytes"] >= lowering["peak_rss_bytes"] > 0
    assert lowering["estimated_worker_peak_bytes"] > 0
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    named = [record.path for record in manifest.all_files()]
    assert sorted(files) == sorted([*named, "manifest.json"])


def test_the_artifact_answers_like_the_checkpoint(bundle: Path, tiny_qwen3_moe: nn.Module) -> None:
    runtime = mk.runtime.open(bundle, "onnx")
    ids = np.arange(20)
    with torch.no_grad():
        expected = tiny_qwen3_moe(torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    np.testing.assert_allclose(runtime.forward(ids, 0), expected, atol=1e-4)
    with pytest.raises(MobileKitError, match="do not fit the exported context"):
        runtime.forward(np.zeros(CONTEXT + 1, dtype=np.int64), 0)


def test_verify_repeats_the_check_also_on_a_zip(bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "bundle.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in bundle.rglob("*"):
            archive.write(path, path.relative_to(bundle))
    recorded = manifest_of(bundle).artifacts[0].parity
    for source in (bundle, packed):
        (record,) = verify(open_bundle(source)).values()
        assert record.passed is True
        assert record.against_fp32 == recorded.against_fp32


def test_a_changed_byte_fails_verification(copied: Path) -> None:
    path = copied / manifest_of(copied).artifacts[0].files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckFailedError, match="has changed"):
        verify(open_bundle(copied))


def test_a_wrong_artifact_fails_and_names_its_layer(
    copied: Path, checkpoint: Path, tiny_qwen3_moe: nn.Module, tmp_path: Path
) -> None:
    """Swap in an artifact whose layer 1 is another one's, checksum and all."""
    import copy

    changed = copy.deepcopy(tiny_qwen3_moe)
    with torch.no_grad():
        changed.get_parameter("model.layers.1.self_attn.v_proj.weight").mul_(1.5)
    mk.save(changed, tmp_path / "changed", tokenizer_from=checkpoint)
    other = tmp_path / "other"
    mk.export.build(
        tmp_path / "changed", other, targets=["onnx"], precisions=["fp32"], context_length=CONTEXT
    )
    manifest = json.loads((copied / "manifest.json").read_text())
    for record in manifest["artifacts"][0]["files"]:
        shutil.copy(other / record["path"], copied / record["path"])
        record["sha256"] = sha256_file(copied / record["path"])
        record["bytes"] = (copied / record["path"]).stat().st_size
    atomic_write_json(copied / "manifest.json", manifest)
    (record,) = verify(open_bundle(copied), checkpoint=checkpoint).values()
    assert record.passed is False
    assert record.first_diverging_layer == "model.layers.1"


def test_the_second_export_comes_from_the_cache(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    manifest = mk.export.build(
        checkpoint, out, targets=["onnx"], precisions=["fp32"], context_length=CONTEXT
    )
    (artifact,) = manifest.artifacts
    assert artifact.settings["lowering"]["cached"] is True
    assert artifact.files == manifest_of(bundle).artifacts[0].files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["tflite"]}, "unknown target 'tflite'"),
        ({"targets": ["onxx"]}, "did you mean 'onnx'"),
        ({"precisions": ["int3"]}, "no precision 'int3'"),
        ({"targets": []}, "nothing to export"),
        ({"context_length": 4096}, "positions for 8 to 128"),
        ({"context_length": 2}, "positions for 8 to 128"),
    ],
)
def test_a_wrong_request_creates_nothing(
    changes: dict[str, object], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(MobileKitError, match=message):
        mk.export.build(checkpoint, tmp_path / "out", **changes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_a_tokenizer_is_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(MobileKitError, match="tokenizer"):
        mk.export.build(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_a_class_without_programs_is_refused_before_any_work(
    name: str, tiny: Callable[[str], nn.Module], byte_tokenizer: Path, tmp_path: Path
) -> None:
    path = mk.save(copy.deepcopy(tiny(name)), tmp_path / "checkpoint")
    shutil.copytree(byte_tokenizer, path, dirs_exist_ok=True)
    (path / "model.safetensors").write_bytes(b"damaged")  # no weight is looked at
    with pytest.raises(UnsupportedModelError, match="cannot be exported yet: ") as caught:
        mk.export.build(path, tmp_path / "bundle", targets=["onnx"], precisions=["fp32"])
    assert str(family_of(tiny(name)).obstacle) in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "bundle").exists()
