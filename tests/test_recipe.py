from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.core.errors import MobileKitError
from mobilekit.recipe import Recipe, check_recipe, load_recipe, parse_recipe
from mobilekit.recipes import DEMO


def test_the_shipped_recipe_is_right_and_says_what_it_means() -> None:
    recipe = load_recipe(DEMO)
    assert recipe.compress[0].method == "aimer"
    assert recipe.export is not None
    assert recipe.export.targets == ("executorch", "onnx", "coreml")
    assert check_recipe(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nsead: 3", "unknown key 'sead'; did you mean 'seed'?"),
        ("version: 1\nmodel: {sorce: x}", "did you mean 'source'?"),
        ("version: 2", "'version' is 2"),
        ("seed: 1", "key 'version' is missing"),
        ("version: 1\ncompress: [{method: aimr}]", "did you mean 'aimer'?"),
        ("version: 1\ncompress: [{method: aimer, sparsty: 0.5}]", "did you mean 'sparsity'?"),
        ("version: 1\ncompress: [{method: aimer, sparsity: 1.0}]", "'sparsity' is 1.0"),
        ("version: 1\ncompress: [{method: aimer, sparsity: -0.1}]", "'sparsity' is -0.1"),
        ("version: 1\nexport: {targets: [onxx]}", "unknown target 'onxx'; did you mean 'onnx'?"),
        ("version: 1\nevaluate: [{suite: mmlu}]", "suite"),
        ("a: [", "not a YAML recipe"),
        ("\t- x", "not a YAML recipe"),
        ("just text", "holds text"),
        ("", "is empty"),
        ("version: 1\nseed: 1\nseed: 2", "given twice"),
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("version: !!python/object/apply:os.system ['true']", "not a YAML recipe"),
        ("\x00", "not a YAML recipe"),
    ],
)
def test_a_wrong_recipe_is_explained_in_two_lines(text: str, message: str) -> None:
    with pytest.raises(MobileKitError) as caught:
        parse_recipe(text, "recipe.yaml")
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == 2


def test_a_large_file_is_not_even_parsed(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("# " + "x" * 10_000_000)
    with pytest.raises(MobileKitError, match="bytes, a recipe has at most"):
        load_recipe(path)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MobileKitError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert "mobilekit init" in caught.value.hint


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(MobileKitError, match="not a YAML recipe"):
        parse_recipe(b"\xff\xfe\x00\x01\xff")


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text()
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Recipe.model_fields, "x", "method"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(DATA)
def test_any_yaml_is_a_recipe_or_refused_in_two_lines(data: object) -> None:
    text = yaml.safe_dump(data, allow_unicode=True)
    try:
        recipe = parse_recipe(text)
    except MobileKitError as error:
        assert "\n" not in error.message
        assert error.hint
    else:
        assert check_recipe(recipe.to_json()) == recipe


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_refused(text: bytes) -> None:
    try:
        parse_recipe(text)
    except MobileKitError as error:
        assert "\n" not in error.message
