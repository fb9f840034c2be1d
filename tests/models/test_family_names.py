from __future__ import annotations

import pytest

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.models.families import family_for_class


@pytest.mark.parametrize(
    ("given", "suggestion"),
    [
        ("GPTBigCodeForCausalLM", ""),
        ("FalconForCausalLM", ""),
        ("Qwen3MoEForCausalLM", "; did you mean 'Qwen3MoeForCausalLM'?"),
    ],
)
def test_a_class_of_another_family_is_no_misspelling(given: str, suggestion: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        family_for_class(given)
    assert caught.value.message == f"unsupported architecture '{given}'{suggestion}"
