"""Cutting stored tensors: byte ranges and inner dimensions, in blocks of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError
from mobilekit.models import rewrite, stored_units
from mobilekit.models.blocks import BlockReader
from mobilekit.models.families import Slice, UnitGroup
from mobilekit.models.rewrite import _blocks, _write_shard
from mobilekit.models.stored import open_stored, stored_specs
from mobilekit.models.stored_units import Cut, cuts
from mobilekit.models.tiny import make_tiny
from mobilekit.models.weights import read_header

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_cut_of_any_tensor(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    kept = data.draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1))
    dtype = data.draw(st.sampled_from(DTYPES))
    block = data.draw(st.sampled_from([8, 40, 1 << 20]))
    tensor = torch.randn(shape).to(dtype)
    file = tmp_path_factory.mktemp("cut") / "model.safetensors"
    save_file({"before": torch.ones(3), "cut": tensor}, file)
    cut = Cut("cut", dim, tuple(sorted(kept)))
    with pytest.MonkeyPatch.context() as patch, BlockReader() as reader:
        patch.setattr(rewrite, "BLOCK", block)
        parts = [part.clone() for part in _blocks(reader, read_header(file)["cut"], cut)]
    expected = tensor.index_select(dim, torch.tensor(cut.indices))
    assert torch.equal(torch.cat(parts), expected.flatten())


def test_a_file_is_written_byte_for_byte_as_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.randn(3, 5),
        "a.weight": torch.randn(4).to(torch.bfloat16),
        "ünicode": torch.randn(2, 2).half(),
        "wide": torch.randn(2, 1).double(),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "source.safetensors", metadata={"format": "pt"})
    specs = {name: tensor.to("meta") for name, tensor in tensors.items()}
    origin = {name: Cut(name) for name in tensors}
    table = read_header(tmp_path / "source.safetensors")
    done = sum(_write_shard(tmp_path / "copy.safetensors", list(specs), specs, origin, table))
    assert done == sum(tensor.nbytes for tensor in tensors.values())
    source, copy = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("source", "copy"))
    assert copy == source
    with safe_open(tmp_path / "copy.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_reading_past_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with BlockReader() as reader:
        assert bytes(reader.read(tmp_path / "file", 1, 2).tolist()) == b"bc"
        with pytest.raises(InvalidInputError, match="ends at byte 3"):
            reader.read(tmp_path / "file", 1, 3)
        with pytest.raises(InvalidInputError, match="No such file"):
            reader.read(tmp_path / "none", 0, 1)


def test_blocks_stay_valid_as_long_as_promised(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(9)))
    with BlockReader(buffers=2) as reader:
        first, second = (reader.read(tmp_path / "file", at, 3) for at in (0, 3))
        assert (first.tolist(), second.tolist()) == ([0, 1, 2], [3, 4, 5])
        third = reader.read(tmp_path / "file", 6, 3)
        assert (second.tolist(), third.tolist()) == ([3, 4, 5], [6, 7, 8])


def group(model: Any, *slices: Slice) -> UnitGroup:
    return UnitGroup(kind="head", layer=0, count=4, minimum=1, slices=slices)


def test_units_that_lie_inside_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads: several columns or rows each, with others beside them that no unit owns."""
    model: Any = make_tiny("llama")
    path = "model.layers.0.self_attn"
    columns = Slice(f"{path}.o_proj", "weight", dim=1, width=16, scored=True)
    rows = Slice(f"{path}.q_proj", "weight", dim=0, width=8, offset=20)
    monkeypatch.setattr(stored_units, "family_of", lambda _: Fake([group(model, columns, rows)]))
    found = stored_units.stored_units(model, ["head"])
    held = found[f"{path}.o_proj.weight"]
    assert (held.dim, held.scored) == (1, True)
    assert held.units == tuple(unit for unit in range(4) for _ in range(16))
    held = found[f"{path}.q_proj.weight"]
    assert (held.dim, held.scored) == (0, False)
    assert held.units == (*[-1] * 20, *(u for u in range(4) for _ in range(8)), *[-1] * 12)


class Fake:
    """The part of a family that says where units are."""

    def __init__(self, groups: list[UnitGroup]) -> None:
        self.groups = groups

    def units(self, model: nn.Module, kind: str) -> list[UnitGroup]:
        return [group for group in self.groups if group.kind == kind]


def test_units_that_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make_tiny("llama")
    crossed = [
        Slice("model.layers.0.self_attn.o_proj", "weight", dim=0, width=16),
        Slice("model.layers.0.self_attn.o_proj", "weight", dim=1, width=16),
    ]
    monkeypatch.setattr(stored_units, "family_of", lambda _: Fake([group(model, *crossed)]))
    with pytest.raises(UnsupportedModelError, match="cannot be told apart on disk"):
        stored_units.stored_units(model, ["head"])


def test_a_conversion_that_cannot_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", broken)
    with pytest.raises(UnsupportedModelError, match="sizes do not match"):
        stored_units._converted(make_tiny("qwen3_moe"), {})


def test_a_result_that_is_no_cut_of_what_is_stored() -> None:
    before, after = make_tiny("qwen3_moe"), make_tiny("olmoe")
    with pytest.raises(UnsupportedModelError, match="cannot be told apart on disk"):
        cuts(before, after, {("expert", 1): [0, 1]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_opened_checkpoint_is_the_loaded_one_without_values(
    tiny_name: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    from mobilekit.models import describe, load, provenance

    model: Any = make_tiny(tiny_name).to(dtype)
    model.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    found, loaded = open_stored(tmp_path / "source"), load(tmp_path / "source", device="cpu")
    ours, theirs = found.model.state_dict(), loaded.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }
    assert {v.device.type for v in ours.values()} == {"meta"}
    assert describe(found.model) == describe(loaded)
    assert provenance(found.model) == provenance(loaded)
    with (tmp_path / "source" / "config.json").open() as stream:
        assert json.load(stream)["architectures"] == [type(found.model).__name__]
    assert stored_specs(found.model).keys() == found.table.keys()
