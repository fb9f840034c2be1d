"""Packages of tiny models, each lowered once for all the files here."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from mobilekit.export.backends.base import ExportSpec, Lowered  # noqa: E402 - after the skip
from mobilekit.export.backends.coreml import COREML  # noqa: E402
from mobilekit.export.precision import Precision  # noqa: E402

from mobilekit.models.families import Family, family_of  # noqa: E402
from mobilekit.schema.manifest import LayerPrecision  # noqa: E402

CONTEXT = 64
TOKENS = np.random.default_rng(3).integers(0, 256, size=60)


@dataclass(frozen=True)
class Case:
    model: nn.Module
    family: Family
    spec: ExportSpec
    lowered: Lowered
    package: Path
    out: Path


def _lively(model: nn.Module) -> nn.Module:
    """A copy whose norms scale and whose router decides, as in a trained model."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
            elif "embed" not in name:
                weight.mul_(4)
    return model


def _lower(
    model: nn.Module, precision: str, out: Path, overrides: dict[str, LayerPrecision] | None = None
) -> Case:
    spec = ExportSpec(Precision(precision, tuple((overrides or {}).items())), CONTEXT)
    family = family_of(model)
    lowered = COREML.lower(model, family, spec, out)
    return Case(model, family, spec, lowered, out / "model.mlpackage", out)


@pytest.fixture(scope="session")
def moe_fp32(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3_moe), "fp32", tmp_path_factory.mktemp("moe-fp32"))


@pytest.fixture(scope="session")
def dense_fp16(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3), "fp16", tmp_path_factory.mktemp("dense-fp16"))


@pytest.fixture(scope="session")
def moe_int8(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _lower(_lively(tiny_qwen3_moe), "int8", tmp_path_factory.mktemp("moe-int8"))


@pytest.fixture(scope="session")
def dense_int4(tiny_qwen3: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Untied, a row of zeros in the embedding, equal weights in two layers, an odd width."""
    torch.manual_seed(1)
    config = copy.deepcopy(tiny_qwen3.config)
    config.tie_word_embeddings, config.intermediate_size = False, 80
    model = _lively(type(tiny_qwen3)(config).eval())
    with torch.no_grad():
        first, second = model.model.layers  # type: ignore[union-attr,misc]
        second.self_attn.q_proj.weight.copy_(first.self_attn.q_proj.weight)
        model.model.embed_tokens.weight[TOKENS[0]] = 0  # type: ignore[union-attr,index]
    return _lower(model, "int4", tmp_path_factory.mktemp("dense-int4"))


@pytest.fixture(scope="session")
def moe_mixed(tiny_qwen3_moe: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Tied embedding and lm_head at different precisions, a layer in float, another in int8."""
    overrides: dict[str, LayerPrecision] = {
        "lm_head": "int8",
        "model.layers.0.self_attn.*": "float",
        "model.layers.1.mlp.*": "int8",
    }
    folder = tmp_path_factory.mktemp("moe-mixed")
    return _lower(_lively(tiny_qwen3_moe), "int4", folder, overrides)
