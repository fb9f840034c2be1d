"""File to file: the same plan and the same checkpoint as through memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mobilekit as mk
from mobilekit.compress import METHODS
from mobilekit.compress.stored import (
    applies_on_disk,
    compress_stored,
    plan_stored,
    plans_from_disk,
)
from mobilekit.core.errors import MissingDependencyError
from mobilekit.models.families import family_for_class
from mobilekit.models.stored import open_stored
from mobilekit.models.tiny import TINY_MODELS, make_tiny
from mobilekit.schema.plan import KeepEdit, read_plans

from .on_disk import check_same, stored, tensors, through_memory

pytestmark = pytest.mark.usefixtures("own_cache")

IDS = torch.arange(9, 33).reshape(2, 12)
SPARSE = [
    name
    for name, (prefix, _) in TINY_MODELS.items()
    if "expert" in family_for_class(f"{prefix}ForCausalLM").units_of
]


@pytest.fixture(scope="module", params=SPARSE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_blocks_summed_on_a_gpu_give_the_same_plan(name: str, tmp_path: Path) -> None:
    source = stored(make_tiny(name).to(torch.bfloat16), tmp_path / "source", "40KB")
    expected = through_memory(source, tmp_path / "memory", sparsity=0.5)
    assert plan_stored(source, "aimer", device="cuda", sparsity=0.5) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(
    name: str, tmp_path: Path, own_cache: Path
) -> None:
    source = stored(make_tiny(name), tmp_path / "source", "40KB")
    with pytest.raises(MissingDependencyError, match="no usable GPU"):
        plan_stored(source, "aimer", device="cuda")
    assert not (own_cache / "scans").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_plan_and_same_checkpoint(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = stored(make_tiny(name).to(dtype), tmp_path / "source", "40KB")
    shutil.copy(Path(mk.models.embedded_path()) / "tokenizer.json", source)
    expected = through_memory(source, tmp_path / "memory", sparsity=0.5)
    assert plan_stored(source, "aimer", sparsity=0.5).to_json() == expected.to_json()
    steps = compress_stored(source, tmp_path / "stream", method="aimer", sparsity=0.5)
    assert [step.to_json() for step in steps] == [expected.to_json()]
    check_same(tmp_path / "stream", tmp_path / "memory")
    assert read_plans(tmp_path / "stream" / "plan.json") == [expected]
    found, wanted = (
        AutoModelForCausalLM.from_pretrained(tmp_path / out) for out in ("stream", "memory")
    )
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, wanted(IDS).logits)
    ours = mk.load(tmp_path / "stream", device="cpu")
    assert mk.models.provenance(ours).plans == (expected,)


def test_same_bytes_where_there_is_one_file(name: str, tmp_path: Path) -> None:
    source = stored(make_tiny(name), tmp_path / "source", "50GB")
    through_memory(source, tmp_path / "memory", sparsity=0.25)
    compress_stored(source, tmp_path / "stream", method="aimer", sparsity=0.25)
    files = [tmp_path / out / "model.safetensors" for out in ("stream", "memory")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("variant", ["aimer", "magnitude", "random"])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5])
def test_every_variant(sharded: Path, variant: str, sparsity: float, tmp_path: Path) -> None:
    settings = {"variant": variant, "sparsity": sparsity, "seed": 7}
    expected = through_memory(sharded, tmp_path / "memory", **settings)
    assert plan_stored(sharded, "aimer", **settings).to_json() == expected.to_json()
    compress_stored(sharded, tmp_path / "stream", method="aimer", **settings)
    check_same(tmp_path / "stream", tmp_path / "memory")


def test_the_index_is_as_transformers_writes_it(sharded: Path, tmp_path: Path) -> None:
    compress_stored(sharded, tmp_path / "stream", method="aimer", sparsity=0.5)
    limit = max(
        sum(tensor.nbytes for tensor in load_file(file).values())
        for file in sharded.glob("*.safetensors")
    )
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "stream")
    model.save_pretrained(tmp_path / "stock", max_shard_size=limit)
    found, expected = (
        {p.name: p.read_bytes() for p in (tmp_path / out).glob("model*")}
        for out in ("stream", "stock")
    )
    assert len(expected) > 2
    assert found == expected


def test_mixed_dtypes_are_widened_as_load_does(sharded: Path, tmp_path: Path) -> None:
    file = sorted(sharded.glob("*.safetensors"))[1]
    wide = {name: tensor.float() for name, tensor in load_file(file).items()}
    save_file(wide, file, metadata={"format": "pt"})
    expected = through_memory(sharded, tmp_path / "memory", sparsity=0.5)
    steps = compress_stored(sharded, tmp_path / "stream", method="aimer", sparsity=0.5)
    assert steps == [expected]
    check_same(tmp_path / "stream", tmp_path / "memory")


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_tied_head_that_is_stored_all_the_same(is_equal: bool, tmp_path: Path) -> None:
    source = stored(make_tiny("qwen3_moe"), tmp_path / "source", "50GB")
    held = load_file(source / "model.safetensors")
    head = held["model.embed_tokens.weight"].clone()
    held["lm_head.weight"] = head if is_equal else head + 1
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    expected = through_memory(source, tmp_path / "memory", sparsity=0.5)
    steps = compress_stored(source, tmp_path / "stream", method="aimer", sparsity=0.5)
    assert steps == [expected]
    check_same(tmp_path / "stream", tmp_path / "memory")
    assert ("lm_head.weight" in tensors(tmp_path / "stream")) is not is_equal


def test_edited_plans_several_plans_and_plans_on_top(sharded: Path, tmp_path: Path) -> None:
    first = plan_stored(sharded, "aimer", sparsity=0.25)
    layer = first.edits[0].layer  # type: ignore[union-attr]
    edited = first.model_copy(
        update={"edits": (KeepEdit(unit="expert", layer=layer, indices=(0, 2, 3)),)}
    )
    again = edited.model_copy(
        update={"edits": (KeepEdit(unit="expert", layer=layer, indices=(1, 2)),), "parent": None}
    )
    compress_stored(sharded, tmp_path / "stream", plans=[edited, again])
    model = mk.load(sharded, device="cpu")
    mk.save(mk.apply(mk.apply(model, edited), again), tmp_path / "memory")
    check_same(tmp_path / "stream", tmp_path / "memory")
    for out, run in (("a", through_memory), ("b", compress_stored)):
        settings: dict[str, Any] = {} if out == "a" else {"method": "aimer"}
        source = stored_pruned(sharded, tmp_path / f"once-{out}")
        run(source, tmp_path / out, sparsity=0.25, **settings)  # type: ignore[operator]
    check_same(tmp_path / "b", tmp_path / "a")
    assert len(read_plans(tmp_path / "b" / "plan.json")) == 2


def stored_pruned(source: Path, out: Path) -> Path:
    through_memory(source, out, sparsity=0.25)
    return out


def test_methods_say_what_they_can_do_on_disk(sharded: Path) -> None:
    method = METHODS.get("aimer")
    assert all(plans_from_disk(method, variant) for variant in ("aimer", "random", "magnitude"))
    assert not plans_from_disk(method, "reap")
    assert not plans_from_disk(method, None)
    assert applies_on_disk([plan_stored(sharded, "aimer")])


def test_no_weight_is_loaded(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model must not be loaded")

    monkeypatch.setattr("mobilekit.models.checkpoint.filled", loaded)
    monkeypatch.setattr("safetensors.safe_open", loaded)
    compress_stored(sharded, tmp_path / "out", method="aimer")
    assert {p.device.type for p in open_stored(sharded).model.parameters()} == {"meta"}


def test_blocks_of_any_size_give_the_same(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress_stored(sharded, tmp_path / "whole", method="aimer", sparsity=0.5)
    for block in (256, 1000 * 2, 4096):
        monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path / f"cache-{block}"))
        for room in ("models.blocks", "models.rewrite", "compress.aimer.scan_file"):
            monkeypatch.setattr(f"mobilekit.{room}.BLOCK", block)
        compress_stored(sharded, tmp_path / str(block), method="aimer", sparsity=0.5)
        check_same(tmp_path / str(block), tmp_path / "whole")


MEMORY = """
import sys, threading
from pathlib import Path
from mobilekit.compress.stored import compress_stored, plan_stored
from mobilekit.models.stored import open_stored, stored_specs

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

stored_specs(open_stored(sys.argv[1]).model)  # imports what there is to import
before, most, done = anonymous(), [0], threading.Event()
def sample():
    while not done.wait(0.002):
        most[0] = max(most[0], anonymous())
thread = threading.Thread(target=sample)
thread.start()
plan_stored(sys.argv[1], "aimer", sparsity=0.5)
compress_stored(sys.argv[1], sys.argv[2], method="aimer", sparsity=0.5)
done.set()
thread.join()
print((most[0] - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="there is no procfs here")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=512,
    )
    source = stored(Qwen3MoeForCausalLM(config).to(torch.bfloat16), tmp_path / "big", "25MB")
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert size > 300_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 150_000_000
    through_memory(source, tmp_path / "memory", sparsity=0.5)
    check_same(tmp_path / "out", tmp_path / "memory")
