"""A recipe compresses file to file where its method allows it, to the same checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mobilekit as mk
from mobilekit.pipeline.compressing import is_on_disk
from mobilekit.recipe import check_recipe

AIMER = {"method": "aimer", "sparsity": 0.25}


def _recipe(source: object = "embedded", **changes: Any) -> dict[str, Any]:
    base = {"version": 1, "model": {"source": str(source)}, "compress": [AIMER], "export": None}
    return {**base, "evaluate": [], **changes}


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("mobilekit.pipeline.compressing.load", refuse)


def _through_memory(source: Path, out: Path, **settings: Any) -> dict[str, bytes]:
    model = mk.load(source, device="cpu")
    plan = mk.plan(model, "aimer", **settings)
    return _files(mk.save(mk.apply(model, plan), out, tokenizer_from=source))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("step", "seed"),
    [
        (AIMER, 0),
        ({"method": "aimer", "variant": "magnitude", "sparsity": 0.5}, 0),
        ({"method": "aimer", "variant": "random", "sparsity": 0.5}, 7),
    ],
)
def test_every_file_is_that_of_the_way_through_memory(
    step: dict[str, Any], seed: int, moe_checkpoint: Path, tmp_path: Path
) -> None:
    record = mk.run(_recipe(moe_checkpoint, compress=[step], seed=seed), tmp_path / "run")
    settings = {"seed": seed, **{k: v for k, v in step.items() if k != "method"}}
    expected = _through_memory(moe_checkpoint, tmp_path / "memory", **settings)
    found = _files(tmp_path / "run" / "checkpoint")
    assert {"model.safetensors", "config.json", "plan.json", "tokenizer.json"} <= set(expected)
    assert found == expected
    assert "parameters" in record.steps[0].detail


@pytest.mark.usefixtures("nothing_is_loaded")
def test_shards_stay_shards_with_the_same_tensors(
    tiny_qwen3_moe: nn.Module, tmp_path: Path
) -> None:
    model: Any = copy.deepcopy(tiny_qwen3_moe)
    model.save_pretrained(tmp_path / "source", max_shard_size="50KB")
    mk.run(_recipe(tmp_path / "source"), tmp_path / "run")
    _through_memory(tmp_path / "source", tmp_path / "memory", sparsity=0.25)
    shards = sorted((tmp_path / "run" / "checkpoint").glob("model-*.safetensors"))
    assert len(shards) > 1
    found = {name: t for shard in shards for name, t in load_file(shard).items()}
    expected = load_file(tmp_path / "memory" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    plans = [tmp_path / n / "plan.json" for n in ("run/checkpoint", "memory")]
    assert plans[0].read_bytes() == plans[1].read_bytes()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_another_recipe_replaces_what_the_first_left(moe_checkpoint: Path, tmp_path: Path) -> None:
    mk.run(_recipe(moe_checkpoint), tmp_path / "run")
    changed = _recipe(moe_checkpoint, compress=[{**AIMER, "sparsity": 0.5}])
    mk.run(changed, tmp_path / "run", resume=True)
    expected = _through_memory(moe_checkpoint, tmp_path / "memory", sparsity=0.5)
    assert _files(tmp_path / "run" / "checkpoint") == expected
    assert [p.name for p in (tmp_path / "run").glob(".*")] == [".state"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"model": {"source": "embedded", "device": "cpu"}}, True),
        ({"compress": [{**AIMER, "variant": "random"}]}, True),
        ({"compress": []}, False),
        ({"compress": [AIMER, AIMER]}, False),
        ({"compress": [{**AIMER, "variant": "reap"}]}, False),
        ({"model": {"source": "embedded", "dtype": "float32"}}, False),
        ({"model": {"source": "embedded", "device": "cuda"}}, True),
    ],
)
def test_which_recipes_need_no_model_in_memory(changes: dict[str, Any], expected: bool) -> None:
    assert is_on_disk(check_recipe(_recipe(**changes))) is expected
