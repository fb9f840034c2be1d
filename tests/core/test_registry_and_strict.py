from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.optional import require
from mobilekit.core.registry import Registry
from mobilekit.core.seeds import generator
from mobilekit.core.strict import StrictModel
from mobilekit.core.suggest import did_you_mean


def test_registry_resolves_lazily_and_suggests() -> None:
    registry: Registry[object] = Registry("thing")
    registry.register("fraction", "fractions:Fraction")
    registry.register("broken", "no_such_module:Name")  # not imported until asked for
    from fractions import Fraction

    assert registry.get("fraction") is Fraction
    with pytest.raises(UsageError) as caught:
        registry.get("fractoin")
    assert "did you mean 'fraction'?" in caught.value.message
    assert "broken, fraction" in caught.value.hint


def test_registry_refuses_two_targets_for_one_name() -> None:
    registry: Registry[object] = Registry("thing")
    registry.register("a", "m:A")
    registry.register("a", "m:A")
    with pytest.raises(ValueError, match="already bound"):
        registry.register("a", "m:B")
    with pytest.raises(ValueError, match="module:Name"):
        registry.register("b", "m.B")


class Inner(StrictModel):
    sparsity: float = 0.5


class Outer(StrictModel):
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "iner": {}}, "unknown key 'iner'; did you mean 'inner'?"),
        ({"name": "x", "inner": {"sparsty": 1}}, "unknown key 'inner.sparsty'; did you mean"),
        ({"nam": "x"}, "unknown key 'nam'; did you mean 'name'?"),
        ({}, "key 'name' is missing"),
        ({"name": 3}, "'name' is 3"),
        ([], "got []"),
        ({"name": "x", "inner": {"sparsity": "y" * 100}}, "..."),
    ],
)
def test_what_is_wrong_is_said_in_two_lines(data: object, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Outer.parse(data, "file")
    assert message in caught.value.message
    assert caught.value.message.startswith("file:")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_keys_inside_a_list_are_suggested_too() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'sparsity'"):
        Outer.parse({"name": "x", "many": [{"sparsty": 1}]}, "file")


@pytest.mark.parametrize("sparsity", [True, "0.25", [0.25]])
def test_scalars_are_what_they_say(sparsity: object) -> None:
    with pytest.raises(InvalidInputError, match="sparsity"):
        Outer.parse({"name": "x", "inner": {"sparsity": sparsity}}, "file")


def test_records_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Outer(name="x").name = "y"


@given(st.text(max_size=8), st.sets(st.text(max_size=8), max_size=4))
def test_suggestions_never_fail_and_name_only_what_is_known(
    given_name: str, known: set[str]
) -> None:
    said = did_you_mean(given_name, known)
    assert said == "" or any(f"'{name}'" in said for name in known)


def test_seeds_differ_by_purpose_and_repeat() -> None:
    import torch

    def draw(seed: int, purpose: str) -> torch.Tensor:
        return torch.rand(4, generator=generator(seed, purpose))

    assert torch.equal(draw(0, "a"), draw(0, "a"))
    assert not torch.equal(draw(0, "a"), draw(0, "b"))
    assert not torch.equal(draw(0, "a"), draw(1, "a"))


def test_a_missing_package_names_its_extra() -> None:
    from mobilekit.core.errors import MissingDependencyError

    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package_at_all", extra="coreml")
    assert "mobilekit[coreml]" in caught.value.hint
    assert caught.value.exit_code == 3
