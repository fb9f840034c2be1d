"""Quantized modules against a slow reading of their own definition."""

from __future__ import annotations

import copy

import pytest
import torch
from mobilekit.export.backends.executorch.quantize import GROUP, QuantizedEmbedding, quantize_
from mobilekit.export.precision import Precision
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from mobilekit.models.families import Phase, Program, StateForm, family_of


@pytest.fixture(scope="module")
def odd_model() -> nn.Module:
    """Its MLP is as pruning may leave it: 48 channels, which do not divide into groups of 32."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    return Qwen3ForCausalLM(config).eval()


def _quantized(model: nn.Module, precision: Precision) -> tuple[Program, list[str]]:
    phase = Phase("forward", StateForm.RESIDENT, 16)
    return quantize_(family_of(model).export_program(copy.deepcopy(model), phase), precision)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_operator_reads_the_table_as_eager_does(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (9, 64), generator=generator)
    scales = torch.rand(9, 64 // GROUP if bits == 4 else 1, generator=generator).bfloat16().float()
    table = QuantizedEmbedding(values.to(torch.int8), scales, bits)
    exact = values * scales.repeat_interleave(64 // scales.shape[1], dim=1)
    tokens = torch.tensor([[3, 0, 8, 3]])
    assert torch.equal(table(tokens), exact[tokens])
    assert torch.equal(table._by_operator(tokens), exact[tokens])


def test_what_cannot_be_grouped_is_int8_and_named(odd_model: nn.Module) -> None:
    program, ungrouped = _quantized(odd_model, Precision("int4"))
    assert ungrouped == ["model.layers.0.mlp.down_proj"]
    mlp = program.module.model.model.layers[0].mlp
    assert mlp.down_proj.weight.target_dtype == torch.int8
    assert mlp.up_proj.weight.target_dtype == torch.int4
    assert _quantized(odd_model, Precision("int8"))[1] == []


def test_int4_errors_are_half_a_step_but_at_the_ends(odd_model: nn.Module) -> None:
    program, _ = _quantized(odd_model, Precision("int4"))
    for name, module in program.module.model.model.layers[0].named_modules():
        if isinstance(module, nn.Linear) and name != "mlp.down_proj":
            exact = odd_model.model.layers[0].get_submodule(name).weight
            weight = module.weight
            assert torch.equal(weight.scale, weight.scale.bfloat16().float())
            step = weight.scale.repeat_interleave(GROUP, dim=1)
            error = (weight.dequantize() - exact).abs()
            is_inside = (weight.qdata > -8) & (weight.qdata < 7)
            assert (error <= torch.where(is_inside, 0.51, 2.0) * step).all()


def test_overrides_choose_each_layer(odd_model: nn.Module) -> None:
    overrides = (("lm_head", "int8"), ("*.mlp.*", "float"), ("*.embed_tokens", "float"))
    program, ungrouped = _quantized(odd_model, Precision("int4", overrides))
    assert ungrouped == []
    model = program.module.model
    assert type(model.model.embed_tokens) is nn.Embedding
    assert model.lm_head.weight.target_dtype == torch.int8
    assert type(model.model.layers[0].mlp.down_proj.weight) is nn.Parameter
    assert model.model.layers[0].self_attn.q_proj.weight.target_dtype == torch.int4


def test_tied_weights_are_quantized_alike(odd_model: nn.Module) -> None:
    tied = copy.deepcopy(odd_model)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    program, _ = _quantized(tied, Precision("int4"))
    table, head = program.module.model.model.embed_tokens, program.module.model.lm_head.weight
    assert torch.equal(table(torch.arange(64)), head.dequantize())
