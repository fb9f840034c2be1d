"""Refusals speak of the file, never of Python or pydantic."""

from __future__ import annotations

from typing import Any

import pytest

from mobilekit.core.errors import InvalidInputError, MobileKitError
from mobilekit.recipe import check_recipe, parse_recipe
from mobilekit.schema.plan import Plan

PYTHON = ("NoneType", "tuple", "Tuple", "valid", "Input", "None", "True", "schema_", "dictionary")


def said(content: dict[str, Any]) -> str:
    with pytest.raises(InvalidInputError) as caught:
        check_recipe({"version": 1, **content}, "r.yaml")
    lines = f"{caught.value.message}\n{caught.value.hint}"
    assert not [word for word in PYTHON if word in lines]
    return lines.removeprefix("r.yaml: ")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (
            {"recover": {"objective": "distill"}},
            "'recover.objective' is 'distill'\nExpected: a list, such as [distill].",
        ),
        (
            {"export": {"targets": []}},
            "'export.targets' is []\nExpected: a list with at least 1 entry.",
        ),
        (
            {"evaluate": [{"suite": "perplexty"}]},
            "evaluate entry 1: unknown suite 'perplexty'; did you mean 'perplexity'?\n"
            "Known: mobile_mmlu, perplexity.",
        ),
        (
            {"evaluate": [{"max_tokens": 3}]},
            "evaluate entry 1: key 'suite' is missing\nAdd the key and try again.",
        ),
        (
            {"evaluate": [{"suite": "mobile_mmlu"}, {"suite": "perplexity", "max_token": 3}]},
            "evaluate entry 2: unknown key 'max_token'; did you mean 'max_tokens'?\n"
            "Known keys here: data, max_tokens, suite, window.",
        ),
        (
            {"compress": [{"method": "aimer", "sparsity": True}]},
            "compress step 1 (aimer): 'sparsity' is true\nExpected: a number.",
        ),
        (
            {"compress": [{"method": "aimer", "variant": "aimre"}]},
            "compress step 1 (aimer): 'variant' is 'aimre'; did you mean 'aimer'?\n"
            "Expected: 'aimer', 'random', 'magnitude', 'frequency', 'seer', 'ean', 'reap', 'man' "
            "or 'msan'.",
        ),
        (
            {"profile": {"devices": ["phone"]}},
            "unknown device 'phone'\nKnown devices: host.",
        ),
        ({"model": 3}, "'model' is 3\nExpected: a mapping."),
        ({"seed": None}, "'seed' is null\nExpected: a whole number."),
        ({"seed": "1"}, "'seed' is '1'\nExpected: a whole number."),
        ({"budget": {"file_mb": -1}}, "'budget.file_mb' is -1\nExpected: greater than 0."),
        (
            {"version": 2},
            "'version' is 2, this MobileKit reads version 1\n"
            "Update MobileKit, or write the recipe anew: mobilekit init",
        ),
    ],
)
def test_a_refusal_has_no_words_of_pydantic(content: dict[str, Any], lines: str) -> None:
    assert said(content) == lines


@pytest.mark.parametrize(
    ("text", "held"),
    [("", "is empty"), ("[1]", "holds a list"), ("3", "holds a number"), ("yes", "holds true")],
)
def test_a_recipe_that_is_no_mapping_says_what_it_is(text: str, held: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^r {held}, expected a mapping"):
        parse_recipe(text, "r")


def test_known_keys_are_those_that_a_file_has() -> None:
    with pytest.raises(InvalidInputError) as caught:
        Plan.parse({"schema": "mobilekit.plan/1", "shema": 1}, "p.json")
    assert "did you mean 'schema'?" in caught.value.message
    assert "schema," in caught.value.hint
    assert "schema_" not in caught.value.hint


def test_keys_of_the_chosen_kind_only_are_named() -> None:
    edit = {"op": "keep", "unit": "expert", "layr": 0, "indices": [2]}
    with pytest.raises(InvalidInputError) as caught:
        Plan.parse({"schema": "mobilekit.plan/1", "edits": [edit]}, "p.json")
    assert "edits entry 1: unknown key 'layr'; did you mean 'layer'?" in caught.value.message
    assert caught.value.hint == "Known keys here: indices, layer, op, unit."


@pytest.mark.parametrize("content", [{"precisions": ["int9"]}, {"overrides": {"lm_head": "int5"}}])
def test_a_width_that_is_not_there_is_no_misspelling(content: dict[str, Any]) -> None:
    with pytest.raises(MobileKitError) as caught:
        check_recipe({"version": 1, "export": {"targets": ["onnx"], **content}}, "r.yaml")
    assert "did you mean" not in caught.value.message
    assert "int8" in caught.value.hint
