"""Plans and recipes that are wrong, or do not fit the model: refused, and no run is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Refused, edit_json, write_recipe


@pytest.fixture(scope="session")
def plan(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mobilekit import compress
    from mobilekit.models import load

    made = compress.plan(load(shelf / "moe", device="cpu"), "aimer", sparsity=0.25)
    return json.loads(json.dumps([made.to_json()]))


def other_parent(plans: Any) -> None:
    plans[0]["parent"] = "sha256:" + "0" * 64


def illegal_index(plans: Any) -> None:
    plans[0]["edits"][0]["indices"][-1] = 99


def too_few(plans: Any) -> None:
    plans[0]["edits"][0]["indices"] = [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_parent, "was made for checkpoint sha256:000000000000"),
        (illegal_index, "keeps expert 99 of layer 0, which has 8"),
        (too_few, "Keep at least 2"),
    ],
)
def test_a_plan_that_does_not_fit(
    change: Callable[[Any], None],
    words: str,
    plan: Any,
    shelf: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    edit_json(tmp_path / "plan.json", change)
    refused(["compress", shelf / "moe", "--plan", "plan.json", "--out", "new"], words)


def test_a_plan_that_is_no_plan(shelf: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "plan.json").write_text("[1, ")
    arguments = ["compress", shelf / "moe", "--out", "new", "--plan"]
    refused([*arguments, "plan.json"], "not valid JSON")
    refused([*arguments, "absent.json"], "does not exist")
    refused([*arguments, tmp_path], "is a directory")


def test_a_run_with_export_needs_a_tokenizer(shelf: Path, tmp_path: Path, refused: Refused) -> None:
    export = {"targets": ["onnx"], "precisions": ["fp32"], "context_length": 64}
    source = {"source": str(shelf / "untokenized")}
    write_recipe(tmp_path / "recipe.yaml", model=source, export=export)
    refused(["run", "recipe.yaml", "--out", "new", "--json"], "has no tokenizer")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: [1\n b: }\n", "is not a YAML recipe"),
        (bytes(range(256)), "is not a YAML recipe"),
        (b"x: &a [1]\ny: *a\n", "aliases are not allowed"),
        (b"- 1\n", "expected a mapping"),
        (b"", "recipe.yaml is empty"),
        (b"# " + b"x" * (10 << 20) + b"\nversion: 1\n", "at most 1048576"),
        (b"version: 2\n", "Update MobileKit"),
        (b"version: 1\nmodle: {}\n", "did you mean 'model'?"),
        (b"version: 1\ncompress: [{method: amer}]\n", "did you mean 'aimer'?"),
        (b"version: 1\ncompress: [{method: aimer, sparsty: 0}]\n", "did you mean 'sparsity'?"),
        (b"version: 1\ncompress: [{method: aimer, sparsity: 1}]\n", "'sparsity' is 1"),
        (b"version: 1\nexport: {targets: [onxx]}\n", "did you mean 'onnx'?"),
        (b"version: 1\nexport: {targets: [onnx], precisions: [int9]}\n", "no precision 'int9'"),
        (b"version: 1\nexport: {context_length: 64}\nprofile: {workloads: [pp65]}\n", "pp65"),
        (b"version: 1\nevaluate: [{suite: perplexty}]\n", "perplexty"),
        (b"version: 1\nprofile: {devices: [hst]}\n", "hst"),
        (b"version: 1\nprofile: {workloads: [zz]}\n", "zz"),
        (b"version: 1\nmodel: {source: absent/there}\n", "does not exist"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_a_bad_recipe(text: bytes, words: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    refused(["run", "recipe.yaml", "--out", "new", "--json"], words)
    refused(["run", tmp_path], "is a directory")


@pytest.mark.parametrize(
    ("checkpoint", "content", "words"),
    [
        ("truncated", {}, "truncated or damaged"),
        ("configless", {}, "has no config.json"),
        ("dense", {"compress": [{"method": "aimer"}]}, "has no experts"),
        ("moe", {"compress": [{"method": "aimer", "sparsity": 0.9}]}, "router's top-2"),
        ("nan", {"compress": [{"method": "aimer"}]}, "NaN or infinite"),
        ("moe", {"export": {"targets": ["onnx"], "context_length": 4096}}, "of 8 to 128"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_leaves_no_run(
    checkpoint: str,
    content: dict[str, Any],
    words: str,
    shelf: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    write_recipe(tmp_path / "recipe.yaml", model={"source": str(shelf / checkpoint)}, **content)
    refused(["run", "recipe.yaml", "--out", "new", "--quiet", "--json"], words)
