"""Layer by layer gives what a whole forward pass gives, for every family of decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilekit.compress.darwinlm.walk import LayerWalk

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "qwen3_moe"]
BATCHES = [torch.arange(9, 33).reshape(2, 12), torch.arange(40, 49)[None]]  # two shapes


def projections(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_modules() if n.endswith(("self_attn.o_proj", "down_proj"))]


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_a_whole_pass(family: str, tiny: Callable[[str], nn.Module]) -> None:
    model: Any = tiny(family)
    paths = projections(model)
    assert paths
    expected: dict[str, list[Tensor]] = {path: [] for path in paths}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, inputs, path=path: expected[path].append(inputs[0])
        )
        for path in paths
    ]
    with torch.no_grad():
        for batch in BATCHES:
            model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    walk = LayerWalk(model, BATCHES, torch.device("cpu"))
    for layer in range(model.config.num_hidden_layers):
        own = {path: found[path].append for path in paths if f"layers.{layer}." in path}
        walk.step(layer, own)
    for path in paths:
        for a, b in zip(found[path], expected[path], strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all("forward" not in layer.__dict__ for layer in model.model.layers)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_model_is_as_it_was_after_an_interruption(tiny: Callable[[str], nn.Module]) -> None:
    model: Any = tiny("llama")
    walk = LayerWalk(model, BATCHES, torch.device("cpu"))

    def stop(_inputs: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk.step(0, {"model.layers.0.mlp.down_proj": stop})
    assert not any(module._forward_pre_hooks for module in model.modules())
