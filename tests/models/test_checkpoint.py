import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from mobilekit.core.errors import (
    InvalidInputError,
    OutputError,
    UsageError,
)
from mobilekit.models import (
    checkpoint_hash,
    describe,
    embedded_path,
    has_tokenizer,
    licences,
    load,
    provenance,
    require_tokenizer,
    resolve,
    save,
    tensor_table,
)
from mobilekit.models.weights import stored_dtype

IDS = torch.arange(3, 19)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("which", ["tiny_qwen3", "tiny_qwen3_moe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reload_is_bit_exact_in_the_stored_dtype(
    which: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = copy.deepcopy(request.getfixturevalue(which)).to(getattr(torch, dtype))
    save(model, tmp_path / "out")
    loaded: Any = load(tmp_path / "out", device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(loaded) is type(model)
    assert loaded.dtype == getattr(torch, dtype)
    assert same_weights(loaded, model)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(stock))


def test_dtype_can_be_chosen_and_an_unknown_one_is_refused(moe_checkpoint: Path) -> None:
    model: Any = load(moe_checkpoint, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(UsageError, match="did you mean 'float32'"):
        load(moe_checkpoint, dtype="float3")


def test_mixed_dtypes_load_as_the_widest(damaged: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    model: Any = load(damaged, device="cpu")
    assert model.dtype == torch.float32
    expected = tensors["model.norm.weight"].float()
    assert torch.equal(model.model.norm.weight, expected)


def test_saving_twice_gives_the_same_bytes(moe_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(load(moe_checkpoint, device="cpu"), tmp_path / name)
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(tmp_path / "b")
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(moe_checkpoint)


def test_hash_sees_weights_config_plan_and_tokenizer(damaged: Path) -> None:
    seen = [checkpoint_hash(damaged)]
    (damaged / "notes.txt").write_text("not part of the model")
    assert checkpoint_hash(damaged) == seen[0]
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with (damaged / name).open("ab") as stream:
            stream.write(b" ")
        seen.append(checkpoint_hash(damaged))
    (damaged / "plan.json").write_text("[]")
    seen.append(checkpoint_hash(damaged))
    assert len(set(seen)) == 5
    assert all(s.startswith("sha256:") and len(s) == 71 for s in seen)


def test_save_brings_tokenizer_generation_settings_and_licence(
    damaged: Path, tmp_path: Path
) -> None:
    (damaged / "LICENSE").write_text("free")
    (damaged / "generation_config.json").write_text('{"max_new_tokens": 7}')
    model: Any = load(damaged, device="cpu")
    assert model.generation_config.max_new_tokens == 7
    out = save(model, tmp_path / "out")
    names = {p.name for p in out.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert (out / "LICENSE").read_text() == "free"
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in out.iterdir())
    assert require_tokenizer(out) == out
    assert provenance(model).source == out


def test_without_a_source_save_takes_the_tokenizer_that_is_named(
    tiny_qwen3: nn.Module, moe_checkpoint: Path, tmp_path: Path
) -> None:
    bare = save(copy.deepcopy(tiny_qwen3), tmp_path / "bare")
    assert not has_tokenizer(bare)
    with pytest.raises(InvalidInputError, match="has no tokenizer"):
        require_tokenizer(bare)
    load(bare, device="cpu")  # planning and compressing need none
    named = save(copy.deepcopy(tiny_qwen3), tmp_path / "named", tokenizer_from=moe_checkpoint)
    assert has_tokenizer(named)


def test_save_refuses_a_directory_in_use_and_leaves_it_alone(
    moe_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        save(load(moe_checkpoint, device="cpu"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_save_that_fails_half_way_leaves_nothing(
    moe_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    model: Any = load(moe_checkpoint, device="cpu")

    def full(folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OutputError, match="no space left"):
        save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_save_that_the_system_refuses_is_two_lines(moe_checkpoint: Path, tmp_path: Path) -> None:
    import resource

    model = load(moe_checkpoint, device="cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the next longer write fails
    try:
        with pytest.raises(OutputError, match="cannot write"):
            save(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", ["apache-2.0", ["apache-2.0", "psf-2.0"]])
def test_a_saved_model_keeps_the_licence_of_its_source(
    moe_checkpoint: Path, tmp_path: Path, named: str | list[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(moe_checkpoint, source)
    (source / "README.md").write_text(f"---\nlicense: {named}\n---\n# It scores 99 %\n")
    out = save(load(source, device="cpu"), tmp_path / "out")
    assert (
        licences(out) == licences(source) == ((named,) if isinstance(named, str) else tuple(named))
    )
    assert "99" not in (out / "README.md").read_text()


def test_sharded_checkpoint_loads_and_a_missing_shard_is_named(
    tiny_qwen3_moe: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sharded"
    copy.deepcopy(tiny_qwen3_moe).save_pretrained(path, max_shard_size="150KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert same_weights(load(path, device="cpu"), tiny_qwen3_moe)
    shards[1].unlink()
    with pytest.raises(InvalidInputError, match=shards[1].name):
        load(path, device="cpu")


def test_describe_counts_by_hand_and_agrees_on_disk_and_in_memory(
    moe_checkpoint: Path, dense_checkpoint: Path
) -> None:
    # hidden 64, 4 heads and 2 key-value heads of 16, 2 layers, 8 experts of 32, vocabulary 256
    attention = 64 * 64 * 2 + 64 * 32 * 2 + 2 * 16
    outside = 256 * 64 + 64 + 2 * (attention + 2 * 64)
    expert = 3 * 32 * 64
    moe = outside + 2 * (8 * 64 + 8 * expert)
    facts = {
        "class": "Qwen3MoeForCausalLM",
        "parameters": moe,
        "active_parameters": moe - 2 * 6 * expert,
        "weight_bytes": 4 * moe,
        "dtype": "float32",
    }
    assert describe(moe_checkpoint) == facts
    assert describe(load(moe_checkpoint, device="cpu")) == facts
    dense = outside + 2 * 3 * 96 * 64
    assert describe(dense_checkpoint)["parameters"] == dense
    assert describe(dense_checkpoint)["active_parameters"] == dense


def test_provenance_names_source_and_hash(moe_checkpoint: Path, tiny_qwen3: nn.Module) -> None:
    model = load(str(moe_checkpoint), device="cpu")
    assert provenance(model).source == moe_checkpoint
    assert provenance(model).parent_hash == checkpoint_hash(moe_checkpoint)
    assert provenance(copy.deepcopy(tiny_qwen3)).parent_hash is None


def test_embedded_resolves_to_the_package() -> None:
    assert resolve("embedded") == embedded_path()
    assert describe("embedded")["class"] == "Qwen3MoeForCausalLM"
    assert has_tokenizer(embedded_path())


def test_table_agrees_with_the_safetensors_library(moe_checkpoint: Path) -> None:
    table = tensor_table(moe_checkpoint)
    expected = load_file(moe_checkpoint / "model.safetensors")
    assert {k: v.shape for k, v in table.items()} == {
        k: tuple(v.shape) for k, v in expected.items()
    }
    assert sum(v.nbytes for v in table.values()) == sum(v.nbytes for v in expected.values())
    assert stored_dtype(table) == "float32"


def test_loading_leaves_the_logging_of_transformers_as_it_was(moe_checkpoint: Path) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    load(moe_checkpoint, device="cpu")
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before
    assert logging.getLogger("transformers").level == before[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_load_to_the_gpu_keeps_every_bit(moe_checkpoint: Path, tiny_qwen3_moe: nn.Module) -> None:
    model: Any = load(moe_checkpoint)
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert same_weights(model.cpu(), tiny_qwen3_moe)


def test_a_head_stored_beside_a_tied_embedding_is_kept_and_counted(
    tiny_qwen3: nn.Module, tmp_path: Path
) -> None:
    model: Any = copy.deepcopy(tiny_qwen3)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "c")
    file = tmp_path / "c" / "model.safetensors"
    tensors = load_file(file)
    head = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file({**tensors, "lm_head.weight": head}, file, metadata={"format": "pt"})
    loaded: Any = load(tmp_path / "c", device="cpu")
    assert torch.equal(loaded.lm_head.weight, head)
    assert loaded.config.tie_word_embeddings is False
    assert describe(tmp_path / "c")["parameters"] == describe(loaded)["parameters"]
    save(loaded, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", device="cpu").lm_head.weight, head)  # type: ignore[union-attr,arg-type]


def test_generation_settings_changed_in_memory_are_saved(
    tiny_qwen3: nn.Module, tmp_path: Path
) -> None:
    save(copy.deepcopy(tiny_qwen3), tmp_path / "a")
    model: Any = load(tmp_path / "a", device="cpu")
    model.generation_config.max_new_tokens = 7
    save(model, tmp_path / "b")
    again: Any = load(tmp_path / "b", device="cpu")
    assert again.generation_config.max_new_tokens == 7


def test_mixed_dtypes_are_widened_aloud(
    tiny_qwen3: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.deepcopy(tiny_qwen3).to(torch.bfloat16).save_pretrained(tmp_path / "c")  # type: ignore[operator]
    file = tmp_path / "c" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file, metadata={"format": "pt"})
    assert next(load(tmp_path / "c", device="cpu").parameters()).dtype == torch.float32
    assert "loaded as float32" in capsys.readouterr().err
