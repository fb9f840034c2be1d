"""A precision that a target lacks is refused with who offers it, never left out in silence."""

from __future__ import annotations

import pytest
from mobilekit.export.backends import BACKENDS
from mobilekit.export.builder import PRECISIONS, TARGETS
from mobilekit.export.offers import check_offered

from mobilekit.core.errors import UsageError


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take half precision from one target: all of ours have the same at present."""
    monkeypatch.setattr(BACKENDS.get("executorch"), "precisions", ("fp32", "int8", "int4"))


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_offers_passes(target: str) -> None:
    check_offered([target], BACKENDS.get(target).precisions)
    assert set(BACKENDS.get(target).precisions) <= set(PRECISIONS)


@pytest.mark.parametrize(
    ("targets", "written", "shared"),
    [
        (TARGETS, "--target onnx --target coreml --precision fp16", "fp32, int8, int4"),
        (("executorch",), "--target coreml --target onnx --precision fp16", "fp32, int8, int4"),
        (("coreml", "executorch"), "--target coreml --precision fp16", "fp32, int8, int4"),
    ],
)
@pytest.mark.usefixtures("fewer")
def test_a_precision_that_one_target_lacks(
    targets: tuple[str, ...], written: str, shared: str
) -> None:
    with pytest.raises(UsageError, match="'executorch' has no precision 'fp16'") as refused:
        check_offered(targets, ["fp32", "fp16"])
    assert "onnx" in refused.value.message
    assert "coreml" in refused.value.message
    assert written in str(refused.value.hint)
    assert f"has {shared}." in str(refused.value.hint)


def test_an_unknown_precision_names_the_recipe_and_what_there_is() -> None:
    with pytest.raises(UsageError, match="^r.yaml: there is no precision 'int9'") as refused:
        check_offered(TARGETS, ["int9"], where="r.yaml")
    assert set(PRECISIONS) <= set(str(refused.value.hint).rstrip(".").replace(",", "").split())


@pytest.mark.usefixtures("fewer")
def test_a_recipe_is_told_what_to_write_in_a_recipe() -> None:
    with pytest.raises(UsageError) as refused:
        check_offered(TARGETS, ["fp16"], where="r.yaml")
    assert "export: {targets: [onnx, coreml], precisions: [fp16]}" in str(refused.value.hint)
