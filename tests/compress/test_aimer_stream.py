"""File to file: the same plan and the same checkpoint as through memory, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import mobilekit as mk
from mobilekit.compress import METHODS
from mobilekit.compress.aimer import kernel, scan
from mobilekit.compress.stored import (
    applies_on_disk,
    compress_stored,
    plan_stored,
    plans_from_disk,
)
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.models import blocks, rewrite
from mobilekit.models.families import family_for_class
from mobilekit.models.stored import open_stored
from mobilekit.models.tiny import TINY_MODELS, make_tiny
from mobilekit.schema.plan import KeepEdit, Plan, read_plans

IDS = torch.arange(9, 33).reshape(2, 12)
SPARSE = [
    name
    for name, (prefix, _) in TINY_MODELS.items()
    if "expert" in family_for_class(f"{prefix}ForCausalLM").units_of
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which no file was read before; the kernel is where it was."""
    kernel.native.library()
    monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=SPARSE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(model: nn.Module, folder: Path, size: str = "50KB") -> Path:
    model.save_pretrained(folder, max_shard_size=size)  # type: ignore[operator]
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A tiny Qwen3-MoE in bf16, in several shards."""
    return stored(make_tiny("qwen3_moe").to(torch.bfloat16), tmp_path / "sharded", "30KB")


def through_memory(source: Path, out: Path, **settings: Any) -> Plan:
    model = mk.load(source, device="cpu")
    plan = mk.plan(model, "aimer", **settings)
    mk.save(mk.apply(model, plan), out)
    return plan


def tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def check_same(found: Path, expected: Path) -> None:
    """The same tensors to the bit, and the same of all else but the shards."""
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    others = [
        {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("model")}
        for folder in (found, expected)
    ]
    assert others[0] == others[1]


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


def counted(monkeypatch: pytest.MonkeyPatch, room: Any, attribute: str) -> list[str]:
    """Count the calls of a function that takes a file."""
    real, calls = getattr(room, attribute), []

    def call(*given: Any, **options: Any) -> Any:
        calls.append(
            next(part.name for part in given if getattr(part, "suffix", "") == ".safetensors")
        )
        return real(*given, **options)

    monkeypatch.setattr(room, attribute, call)
    return calls


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_plan_goes_on_at_the_file(
    sharded: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = len(list(sharded.glob("*.safetensors")))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    real, done = scan.scan_file, []

    def interrupted(*given: Any) -> Any:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(given)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "scan_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan_stored(sharded, "aimer")
    calls = counted(monkeypatch, scan, "scan_file")
    plan = plan_stored(sharded, "aimer")
    assert len(calls) == files - after
    assert plan == mk.plan(mk.load(sharded, device="cpu"), "aimer")
    plan_stored(sharded, "aimer", variant="random", sparsity=0.5)
    assert len(calls) == files - after  # what was read is known


def test_a_file_that_changed_is_read_again(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_stored(sharded, "aimer")
    file = next(
        f
        for f in sorted(sharded.glob("*.safetensors"))
        if any("experts" in n for n in load_file(f))
    )
    state = file.stat()
    changed = {name: tensor * 3 for name, tensor in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # only the change time tells
    calls = counted(monkeypatch, scan, "scan_file")
    after = plan_stored(sharded, "aimer")
    assert calls == [file.name]
    assert after.parent != before.parent
    assert after == mk.plan(mk.load(sharded, device="cpu"), "aimer")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 3}', None])
def test_a_damaged_record_is_not_believed(sharded: Path, own_cache: Path, text: str | None) -> None:
    expected = plan_stored(sharded, "aimer")
    for record in (own_cache / "scans").rglob("*.json"):
        data = json.loads(record.read_text())
        data["sums"] = dict.fromkeys(data["sums"], "none")
        record.write_text(json.dumps(data) if text is None else text)
    assert plan_stored(sharded, "aimer") == expected


STOPS: dict[str, Callable[[Any], Any]] = {
    "a shard": lambda patch: patch.setattr(rewrite, "_blocks", failing(rewrite._blocks, 12)),
    "companions": lambda patch: patch.setattr(rewrite, "_write_companions", failing(None, 0)),
    "index": lambda patch: patch.setattr(rewrite, "_write_index", failing(None, 0)),
    "plan": lambda patch: patch.setattr(rewrite, "atomic_write_json", failing(None, 0)),
    "rename": lambda patch: patch.setattr("mobilekit.models.staging.os.rename", failing(None, 0)),
}


def failing(real: Any, after: int) -> Any:
    calls: list[int] = []

    def call(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*given, **options)

    return call


@pytest.mark.parametrize("stop", STOPS)
def test_an_interrupted_compression_goes_on_at_the_file(
    sharded: Path, stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress_stored(sharded, tmp_path / "expected", method="aimer", sparsity=0.5)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        STOPS[stop](patch)
        with pytest.raises(KeyboardInterrupt):
            compress_stored(sharded, out, method="aimer", sparsity=0.5)
    assert not out.exists()
    partial = tmp_path / ".out.partial"
    whole = {path.name: path.stat().st_ino for path in partial.glob("model*.safetensors")}
    assert whole
    calls = counted(monkeypatch, rewrite, "_write_shard")
    compress_stored(sharded, out, method="aimer", sparsity=0.5)
    assert not partial.exists()
    assert not whole.keys() & set(calls)
    assert {name: (out / name).stat().st_ino for name in whole} == whole
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("out", "expected")
    )
    assert found == expected


def test_other_settings_do_not_go_on_with_old_files(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": "aimer", "sparsity": 0.5}
    with monkeypatch.context() as patch:
        STOPS["index"](patch)
        with pytest.raises(KeyboardInterrupt):
            compress_stored(sharded, tmp_path / "out", variant="random", **settings)
    compress_stored(sharded, tmp_path / "out", method="aimer", variant="magnitude", sparsity=0.5)
    through_memory(sharded, tmp_path / "memory", variant="magnitude", sparsity=0.5)
    check_same(tmp_path / "out", tmp_path / "memory")


def put(folder: Path, name: str, value: float) -> None:
    for file in folder.glob("*.safetensors"):
        held = load_file(file)
        if name in held:
            held[name].flatten()[5] = value
            save_file(held, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        ("model.layers.1.mlp.experts.2.up_proj.weight", "expert 2 of layer 1 has weights that"),
        ("model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.weight in"),
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight in"),
    ],
)
@pytest.mark.parametrize("variant", ["aimer", "random"])
def test_weights_that_are_not_finite(
    sharded: Path, tensor: str, told: str, value: float, variant: str
) -> None:
    put(sharded, tensor, value)
    with pytest.raises(InvalidInputError, match=told):
        plan_stored(sharded, "aimer", variant=variant)


def test_dead_experts_go_first(sharded: Path, tmp_path: Path) -> None:
    for part in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.experts.1.{part}_proj.weight"
        for file in sharded.glob("*.safetensors"):
            held = load_file(file)
            if name in held:
                held[name].zero_()
                save_file(held, file, metadata={"format": "pt"})
    plan = plan_stored(sharded, "aimer", sparsity=0.25)
    assert 1 in plan.scores["layers"][0]["pruned"]
    assert "all zeros" in plan.warnings[0]
    assert plan == mk.plan(mk.load(sharded, device="cpu"), "aimer", sparsity=0.25)


def test_files_that_are_damaged_or_missing(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    data = second.read_bytes()
    second.write_bytes(data[:-10])
    with pytest.raises(InvalidInputError, match="truncated or damaged"):
        plan_stored(sharded, "aimer")
    second.unlink()
    with pytest.raises(InvalidInputError, match="is missing"):
        plan_stored(sharded, "aimer")
    second.write_bytes(data)
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**config, "num_local_experts": 3}))
    with pytest.raises(InvalidInputError, match="has no place for"):
        plan_stored(sharded, "aimer")
    del first


def test_a_file_that_is_cut_off_while_it_is_read(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blocks.os.preadv
    monkeypatch.setattr(
        blocks.os, "preadv", lambda fd, into, at: 0 if at > 5000 else real(fd, into, at)
    )
    with pytest.raises(InvalidInputError, match="ends at byte"):
        plan_stored(sharded, "aimer")
    monkeypatch.setattr(blocks.os, "preadv", raising(OSError(5, "Input/output error")))
    with pytest.raises(InvalidInputError, match="cannot be read: Input/output error"):
        plan_stored(sharded, "aimer")


def raising(error: Exception) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def test_what_a_plan_may_not_do(sharded: Path, tmp_path: Path) -> None:
    plan = plan_stored(sharded, "aimer", sparsity=0.25)
    layer = plan.edits[0].layer  # type: ignore[union-attr]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"parent": f"sha256:{'0' * 64}"}, "made for checkpoint"),
        ({"method_version": 99}, "version 99"),
        ({"edits": (KeepEdit(unit="expert", layer=layer, indices=(0,)),)}, "which needs 2"),
        ({"edits": (KeepEdit(unit="expert", layer=layer, indices=(0, 9)),)}, "which has 4"),
        ({"edits": (KeepEdit(unit="expert", layer=0, indices=(0, 1)),)}, "which has none"),
    ]
    for change, told in cases:
        with pytest.raises(UsageError, match=told):
            compress_stored(sharded, tmp_path / "out", plans=[plan.model_copy(update=change)])
    with pytest.raises(UsageError, match="leaves 0 of 4"):
        plan_stored(sharded, "aimer", sparsity=0.95)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_a_model_without_experts(tmp_path: Path) -> None:
    source = stored(make_tiny("llama"), tmp_path / "llama")
    with pytest.raises(UnsupportedModelError, match="has no experts"):
        plan_stored(source, "aimer")


def test_a_disk_that_is_too_small(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "free_disk_bytes", lambda path: 1000)
    with pytest.raises(UsageError, match=r"needs .* of disk, but 0\.0 MB are free"):
        compress_stored(sharded, tmp_path / "out", method="aimer")
    assert not (tmp_path / ".out.partial").exists()


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
