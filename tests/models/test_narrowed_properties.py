"""Any legal set of edits, on three layouts: separate, biased and fused projections."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.models import load, save
from mobilekit.models.surgery import check
from mobilekit.schema.plan import Edit, KeepEdit, RemoveEdit, read_plans

from .narrowed import (
    LAYERS,
    Kept,
    expected_parameters,
    generated,
    kept_by,
    logits,
    narrowed,
    parameters,
    remove,
    silenced,
    wide,
)

MODELS = cache(wide)


def some(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Any set of units to keep, ascending, not empty."""
    sets = st.sets(st.integers(0, count - 1), min_size=1)
    return sets.map(lambda chosen: tuple(sorted(chosen)))


def layer_edits(data: st.DataObject, layer: int, kept: Kept, *, removable: bool) -> list[Edit]:
    """Draw what happens to a layer, as it is by now."""
    edits: list[Edit] = []
    if kept.attention:
        choices = ["none", "head", *(["kv_head"] if kept.is_even() else [])]
        choices += ["remove"] if removable else []
        unit = data.draw(st.sampled_from(choices))
        if unit == "remove":
            edits.append(remove("attention", layer))
        elif unit != "none":
            count = len(kept.heads if unit == "head" else kept.kv_heads)
            edits.append(KeepEdit(unit=unit, layer=layer, indices=data.draw(some(count))))
    if kept.mlp:
        unit = data.draw(st.sampled_from(["none", "channel", "remove"]))
        if unit == "remove":
            edits.append(remove("mlp", layer))
        elif unit == "channel":
            indices = data.draw(some(len(kept.channels)))
            edits.append(KeepEdit(unit="channel", layer=layer, indices=indices))
    return edits


@pytest.mark.parametrize("name", ["llama-bias", "gemma2", "phi3"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_sequence_of_legal_edits(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = MODELS(name)
    steps: list[list[Edit]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        edits: list[Edit] = []
        for layer in range(LAYERS):
            state = kept_by([*steps, edits])
            others = [one.attention for i, one in enumerate(state) if i != layer]
            edits += layer_edits(data, layer, state[layer], removable=any(others))
        steps.append(edits)
    small, whole = narrowed(model, *steps), silenced(model, steps)
    torch.testing.assert_close(logits(small), logits(whole), atol=1e-5, rtol=1e-4)
    assert parameters(small) == expected_parameters(model, steps)
    wanted = generated(small, max_new_tokens=4, use_cache=False)
    assert torch.equal(generated(small, max_new_tokens=4), wanted)
    path = save(small, tmp_path_factory.mktemp("any") / "out")
    assert [list(plan.edits) for plan in read_plans(path / "plan.json")] == steps
    loaded = load(path, device="cpu")
    torch.testing.assert_close(logits(loaded), logits(small), atol=1e-6, rtol=1e-5)
    state = small.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    for before, after in zip(small.model.layers, loaded.model.layers, strict=True):  # type: ignore[union-attr,arg-type]
        assert _slots(before) == _slots(after)
    removed = [edit for edits in steps for edit in edits if isinstance(edit, RemoveEdit)]
    if removed:
        with pytest.raises(Exception, match="which has none"):
            check(loaded, removed[:1])


def _slots(layer: torch.nn.Module) -> object:
    """Return which key-value head each query head reads, where that is not stock."""
    slots = getattr(layer.self_attn, "head_slots", None)
    return None if slots is None else (slots.kv_index, slots.taken.tolist(), slots.per_group)
