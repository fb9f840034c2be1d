"""A precision that a target lacks is refused with its name, never left out in silence."""

from __future__ import annotations

import pytest
from mobilekit.export.backends import BACKENDS
from mobilekit.export.builder import PRECISIONS, TARGETS
from mobilekit.export.offers import check_offered

from mobilekit.core.errors import UsageError


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_offers_passes(target: str) -> None:
    check_offered([target], BACKENDS.get(target).precisions)
    assert set(BACKENDS.get(target).precisions) <= set(PRECISIONS)


def test_a_precision_that_one_target_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours have the same precisions at present, so one is taken from one of them."""
    monkeypatch.setattr(BACKENDS.get("executorch"), "precisions", ("fp32", "int8", "int4"))
    with pytest.raises(UsageError, match="'executorch' has no precision 'fp16'") as refused:
        check_offered(TARGETS, ["fp32", "fp16"])
    assert refused.value.hint == "Known precisions: fp32, int8, int4."
    check_offered(["onnx"], ["fp16"])


def test_an_unknown_precision_names_the_recipe_and_what_there_is() -> None:
    with pytest.raises(UsageError, match="^r.yaml: target .* has no precision 'int9'") as refused:
        check_offered(TARGETS, ["int9"], where="r.yaml")
    assert set(PRECISIONS) == set(str(refused.value.hint).rstrip(".").replace(",", "").split()[2:])
