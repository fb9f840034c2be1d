"""The bounds of parity: faults of the weights are outside of them at every precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from mobilekit.export import vectors as parity_vectors  # noqa: E402 - after the skip
from mobilekit.export.backends.base import ExportSpec, Routing  # noqa: E402
from mobilekit.export.backends.coreml import COREML  # noqa: E402
from mobilekit.export.parity import deviation, within  # noqa: E402
from mobilekit.export.precision import Precision  # noqa: E402
from mobilekit.export.vectors import Answer, Vectors  # noqa: E402

from mobilekit.models.families import family_of  # noqa: E402
from mobilekit.models.tiny import make_tiny  # noqa: E402
from mobilekit.runtime.torch import TorchRuntime  # noqa: E402

CONTEXT = 64
PROMPTS = np.random.default_rng(0).integers(0, 256, (3, 20)).tolist()
HALF = ("fp16", "int8", "int4")


def _scale_norm(layers: Any) -> None:
    layers[1].input_layernorm.weight.mul_(1.1)


def _scale_values(layers: Any) -> None:
    layers[1].self_attn.v_proj.weight.mul_(1.1)


def _swap_experts(layers: Any) -> None:
    down = layers[1].mlp.experts.down_proj
    down[[2, 3]] = down[[3, 2]]


def _zero_expert(layers: Any) -> None:
    layers[1].mlp.experts.down_proj[3] = 0


EVERYWHERE = (_scale_norm, _scale_values)
FAULTS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "llama": EVERYWHERE,
    "olmoe": (*EVERYWHERE, _swap_experts, _zero_expert),
    "glm4_moe": (*EVERYWHERE, _swap_experts),  # the expert that is set to zero is not chosen here
}
ROUTING: dict[str, Routing] = {"llama": "dense", "olmoe": "experts", "glm4_moe": "groups"}


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_outside_the_bounds(name: str, precision: str) -> None:
    model = make_tiny(name)
    vectors = parity_vectors.record(TorchRuntime(model), PROMPTS, 20)
    spec = ExportSpec(Precision(precision), CONTEXT, routing=ROUTING[name])
    bounds = COREML.tolerance(spec)
    sound = _answer(model, spec, vectors)
    assert within(deviation("itself", sound, sound), bounds, steps=vectors.tokens.size)
    for fault in FAULTS[name]:
        faulty: Any = copy.deepcopy(model)
        with torch.no_grad():
            fault(faulty.model.layers)
        found = deviation("sound", sound, _answer(faulty, spec, vectors))
        assert not within(found, bounds, steps=vectors.tokens.size), fault.__name__
        assert found.kl_p90 > bounds.kl_p90, fault.__name__


def _answer(model: nn.Module, spec: ExportSpec, vectors: Vectors) -> Answer:
    return parity_vectors.replay(COREML.reference(model, family_of(model), spec), vectors)


@pytest.mark.parametrize("precision", HALF)
def test_bounds_are_wider_only_where_a_router_chooses(precision: str) -> None:
    plain = ExportSpec(Precision(precision), CONTEXT)
    routed = ExportSpec(Precision(precision), CONTEXT, routing="experts")
    grouped = ExportSpec(Precision(precision), CONTEXT, routing="groups")
    assert COREML.tolerance(plain).kl_p90 < COREML.tolerance(routed).kl_p90
    assert COREML.tolerance(routed).kl_p90 == COREML.tolerance(grouped).kl_p90
    found = [COREML.tolerance(spec) for spec in (plain, routed, grouped)]
    assert found[0].kl < found[1].kl < found[2].kl
    assert found[0].max_abs < found[1].max_abs < found[2].max_abs
