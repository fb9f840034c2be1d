"""Fixtures for every room: tiny instances of the real classes, and a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mobilekit.models.tiny import TINY, TINY_MODELS, make_tiny, write_byte_tokenizer

if TYPE_CHECKING:
    from torch import nn


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep lowered artifacts of the tests out of the user's cache, and the other way round."""
    os.environ["MOBILEKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_qwen3() -> nn.Module:
    """A dense Qwen3 with random weights, float32; copy it before changing it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**TINY, intermediate_size=96)).eval()


@pytest.fixture(scope="session")
def tiny_qwen3_moe() -> nn.Module:
    """A Qwen3-MoE (8 experts, top-2) with random weights, float32; copy it before changing it."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(2)
    config = Qwen3MoeConfig(
        **TINY, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
    )
    return Qwen3MoeForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], nn.Module]:
    """Give the tiny model of a name in ``TINY_MODELS``, float32; copy it before changing it."""
    return cache(make_tiny)


@pytest.fixture(scope="session")
def tiny_names() -> list[str]:
    """All names in ``TINY_MODELS``."""
    return list(TINY_MODELS)


@pytest.fixture(scope="session", params=TINY_MODELS)
def tiny_name(request: pytest.FixtureRequest) -> str:
    """Every name in ``TINY_MODELS``, in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model(tiny: Callable[[str], nn.Module], tiny_name: str) -> nn.Module:
    """The tiny model of every family and variant, in turn; copy it before changing it."""
    return tiny(tiny_name)


@pytest.fixture(scope="session")
def tiny_olmoe(tiny: Callable[[str], nn.Module]) -> nn.Module:
    """An OLMoE (8 experts, top-2) with random weights, float32; copy it before changing it."""
    return tiny("olmoe")


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of a byte-level tokenizer whose vocabulary is the 256 bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return folder
