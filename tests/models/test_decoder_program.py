from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.models.families import Phase, StateForm, family_of

LENGTH = 12
FORMS = [StateForm.RESIDENT, StateForm.EXPLICIT, StateForm.ARITHMETIC]


def stepped(model: Any, form: StateForm, cuts: list[int]) -> torch.Tensor:
    """Last logits (V,) after feeding tokens 1 to ``LENGTH`` in calls that end at ``cuts``."""
    program: Any = family_of(model).export_program(model, Phase("forward", form, 16))
    ids = torch.arange(1, LENGTH + 1)[None]
    past = [torch.zeros(1, *s.shape[1:2], 0, *s.shape[3:]) for s in program.outputs[1:]]
    logits, start = torch.empty(0), 0
    for end in cuts:
        tokens, position = ids[:, start:end], torch.tensor([start])
        if form is StateForm.EXPLICIT:
            positions = torch.arange(start, end)[None]
            logits, past = program.module(tokens, torch.ones(1, end), positions, past)
        elif form is StateForm.ARITHMETIC:
            logits = program.module(tokens.int(), position.int())
        else:
            logits = program.module(tokens, position)
        start = end
    return logits[0, -1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cuts", [[LENGTH], [1, 5, 6, LENGTH]])
@pytest.mark.parametrize("fixture", ["tiny_qwen3", "tiny_qwen3_moe"])
def test_every_form_says_what_the_model_says(
    form: StateForm, cuts: list[int], fixture: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(fixture)
    with torch.no_grad():
        expected = model(torch.arange(1, LENGTH + 1)[None]).logits[0, -1]
        torch.testing.assert_close(stepped(model, form, cuts), expected, atol=2e-5, rtol=1e-4)


def test_sliding_windows_are_refused_instead_of_ignored(tiny_qwen3: Any) -> None:
    model = copy.deepcopy(tiny_qwen3)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UnsupportedModelError, match="sliding_attention"):
        stepped(model, StateForm.RESIDENT, [LENGTH])
