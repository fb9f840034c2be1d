"""Bad checkpoints: each is refused in two lines, with nothing left behind."""

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mobilekit.core.errors import InvalidInputError, MobileKitError, UnsupportedModelError
from mobilekit.models import load
from mobilekit.models.weights import read_header


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(json.dumps(config))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def refusal(path: Path, kind: type[MobileKitError] = InvalidInputError) -> MobileKitError:
    before = sorted(p.name for p in path.iterdir()) if path.is_dir() else None
    with pytest.raises(kind) as caught:
        load(path, device="cpu")
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == 2
    assert before == (sorted(p.name for p in path.iterdir()) if path.is_dir() else None)
    return caught.value


def test_index_that_lies_or_leaves_the_directory_is_refused(
    tiny_qwen3_moe: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sharded"
    copy.deepcopy(tiny_qwen3_moe).save_pretrained(path, max_shard_size="150KB")
    index = path / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    table = dict(original["weight_map"])
    table["model.norm.weight"] = next(v for v in table.values() if v != table["model.norm.weight"])
    index.write_text(json.dumps({**original, "weight_map": table}))
    assert "model.norm.weight" in refusal(path).message
    for name in ("../outside.safetensors", "/etc/hostname", "a\\..\\b"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert "outside of the checkpoint" in refusal(path).message
    for content in ("[]", "{}", '{"weight_map": {"a": 1}}', "{"):
        index.write_text(content)
        assert index.name in refusal(path).message


def test_nothing_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent").message
    with pytest.raises(InvalidInputError, match="does not exist"):
        load("some-organisation/a-model-that-is-not-cached")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file").message
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty").message


def test_no_weights(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    assert "has no weights" in refusal(damaged).message


@pytest.mark.parametrize("keep", [5, 100, 0.5, 0.999])
def test_truncated_weights(damaged: Path, keep: float) -> None:
    file = damaged / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    error = refusal(damaged)
    assert "truncated or damaged" in error.message
    assert "model.safetensors" in error.message


def test_weights_with_bytes_after_the_end(damaged: Path) -> None:
    with (damaged / "model.safetensors").open("ab") as stream:
        stream.write(b"\0" * 16)
    assert "truncated or damaged" in refusal(damaged).message


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [64, 64]),
        ("shape", [-64]),
        ("shape", ["x"]),
        ("shape", None),
        ("dtype", "F64"),
        ("dtype", "F99"),
        ("data_offsets", [0, 1 << 60]),
        ("data_offsets", [4, 2]),
        ("data_offsets", [1]),
    ],
)
def test_header_that_lies(damaged: Path, field: str, value: object) -> None:
    def lie(header: dict[str, Any]) -> None:
        header["model.norm.weight"][field] = value

    rewrite_header(damaged / "model.safetensors", lie)
    assert "truncated or damaged" in refusal(damaged).message


def test_header_whose_tensors_overlap(damaged: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        first = header["model.layers.0.input_layernorm.weight"]
        header["model.layers.0.post_attention_layernorm.weight"] = first

    rewrite_header(damaged / "model.safetensors", overlap)
    with pytest.raises(InvalidInputError, match="truncated or damaged"):
        read_header(damaged / "model.safetensors")


def test_header_longer_than_the_file(damaged: Path) -> None:
    (damaged / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert "truncated or damaged" in refusal(damaged).message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_are_a_header_or_a_two_line_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, framed: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(struct.pack("<Q", len(data)) + data if framed else data)
    try:
        assert isinstance(read_header(file), dict)
    except InvalidInputError as error:
        assert len(str(error).splitlines()) == 2


def test_pickled_weights_are_refused_and_never_opened(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    (damaged / "pytorch_model.bin").write_bytes(b"would run code if it were opened")
    error = refusal(damaged)
    assert "pickled weights (pytorch_model.bin)" in error.message
    assert "save_pretrained" in error.hint


def test_unknown_architecture_lists_the_supported_ones(damaged: Path) -> None:
    edit_config(damaged, architectures=["Qwen3MoeForCausualLM"])
    error = refusal(damaged, UnsupportedModelError)
    assert "did you mean 'Qwen3MoeForCausalLM'?" in error.message
    assert "Qwen3ForCausalLM" in error.hint
    for value in ([], None, "Qwen3ForCausalLM", [3]):
        edit_config(damaged, architectures=value)
        assert "names no class" in refusal(damaged).message


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "\udcff"])
def test_config_that_is_not_a_json_object(damaged: Path, content: str) -> None:
    (damaged / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json" in refusal(damaged).message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"hidden_act": "no_such_function"},
        {"model_type": "llama"},
        {"model_type": None},
        {"rope_parameters": {"rope_type": "no_such_rope"}},
    ],
)
def test_config_that_describes_no_model(damaged: Path, changes: dict[str, Any]) -> None:
    edit_config(damaged, **changes)
    assert "config.json" in refusal(damaged).message


def test_config_cannot_choose_code_kernels_or_files(damaged: Path, tiny_qwen3_moe: Any) -> None:
    edit_config(
        damaged,
        auto_map={"AutoModelForCausalLM": "evil.Model"},
        _attn_implementation="someone/kernels",
        attn_implementation="someone/kernels",
        transformers_weights="../other.safetensors",
    )
    model: Any = load(damaged, device="cpu")
    assert type(model).__module__.startswith("transformers.")
    assert model.config._attn_implementation == "sdpa"
    expected = tiny_qwen3_moe.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "name", "given", "asked"),
    [
        (
            {"hidden_size": 32},
            "model.embed_tokens.weight",
            "[256, 64]",
            "[256, 32]",
        ),
        (
            {"num_local_experts": 6},
            "model.layers.0.mlp.experts.6.down_proj.weight",
            "[64, 32]",
            "absent",
        ),
        (
            {"num_local_experts": 9},
            "model.layers.0.mlp.experts.8.down_proj.weight",
            "absent",
            "[64, 32]",
        ),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight", "[64]", "absent"),
    ],
)
def test_config_and_weights_that_disagree(
    damaged: Path, changes: dict[str, Any], name: str, given: str, asked: str
) -> None:
    edit_config(damaged, **changes)
    message = refusal(damaged).message
    if asked == "absent":
        assert (
            message == f"the weights of {damaged} hold {name}, which config.json has no place for"
        )
    elif given == "absent":
        assert message == f"the weights of {damaged} lack {name}, but config.json asks for {asked}"
    else:
        assert message == f"{name} in {damaged} is {given}, but config.json asks for {asked}"


def test_missing_and_unexpected_tensors_are_named(damaged: Path) -> None:
    edit_weights(damaged, lambda t: t.pop("model.layers.1.mlp.gate.weight"))
    assert "model.layers.1.mlp.gate.weight" in refusal(damaged).message
    edit_weights(damaged, lambda t: t.update({"model.layers.1.mlp.gate.weight": torch.ones(8, 64)}))
    load(damaged, device="cpu")
    edit_weights(damaged, lambda t: t.update({"model.extra": torch.ones(2)}))
    assert "hold model.extra, which" in refusal(damaged).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weight_that_is_not_finite_is_named(damaged: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.experts.5.up_proj.weight"][3, 4] = value

    edit_weights(damaged, spoil)
    message = refusal(damaged).message
    assert "model.layers.1.mlp.experts.gate_up_proj" in message
    assert "holds a value that is NaN or infinite, at [5, 35, 4]" in message


def test_quantized_checkpoints_are_refused(damaged: Path) -> None:
    edit_weights(damaged, lambda t: t.update({"model.norm.weight": torch.ones(64).to(torch.int8)}))
    assert "stored as I8" in refusal(damaged, UnsupportedModelError).message
    edit_weights(damaged, lambda t: t.update({"model.norm.weight": torch.ones(64)}))
    edit_config(damaged, quantization_config={"quant_method": "fp8"})
    assert "quantized" in refusal(damaged, UnsupportedModelError).message


def test_generation_config_that_is_not_json(damaged: Path) -> None:
    (damaged / "generation_config.json").write_text("{")
    assert "generation_config.json" in refusal(damaged).message


@pytest.mark.parametrize("content", ["{", '{"schema": "mobilekit.plan/2"}', "3"])
def test_plan_file_that_is_none(damaged: Path, content: str) -> None:
    (damaged / "plan.json").write_text(content)
    assert "plan.json" in refusal(damaged).message


def test_plan_file_that_does_not_fit_the_model(damaged: Path) -> None:
    edit = {"op": "keep", "unit": "expert", "layer": 0, "indices": [0, 99]}
    entry = {
        "schema": "mobilekit.plan/1",
        "method": "aimer",
        "method_version": 1,
        "config": {},
        "seed": 0,
        "parent": None,
        "edits": [edit],
    }
    (damaged / "plan.json").write_text(json.dumps([entry]))
    assert "expert 99 of layer 0" in refusal(damaged).message


def test_layers_that_are_not_stored_are_not_even_built(tiny_qwen3: Any, tmp_path: Path) -> None:
    copy.deepcopy(tiny_qwen3).save_pretrained(tmp_path / "c")
    edit_config(tmp_path / "c", num_hidden_layers=10**6, layer_types=None, max_window_layers=0)
    assert "but config.json asks for 1000000" in refusal(tmp_path / "c").message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "model.safetensors is empty"),
        (b"PK\x03\x04" + bytes(200), "model.safetensors is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "is not a safetensors file"),
        (b"\x10\x00\x00", "truncated or damaged: its header does not fit in its 3 bytes"),
        (b"\x40" + bytes(7) + b'{"a"', "its header does not fit in its 12 bytes"),
    ],
)
def test_what_is_no_safetensors_file_is_called_so(
    damaged: Path, content: bytes, words: str
) -> None:
    (damaged / "model.safetensors").write_bytes(content)
    assert words in refusal(damaged).message
    assert "-1 bytes" not in refusal(damaged).message
