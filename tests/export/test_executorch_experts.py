"""Experts apart against the two linears they come from, and the file against both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from hypothesis import given, settings
from hypothesis import strategies as st
from mobilekit.export.backends.executorch.expert_delegates import (
    ToShippedOperators,
    expert_lowering,
    experts_to_delegates,
    take_experts,
)
from mobilekit.export.backends.executorch.experts import (
    Expert,
    SparseExperts,
    _places,
    split_experts_,
)
from mobilekit.export.backends.executorch.half import halve_
from mobilekit.export.backends.executorch.partition import DecoderPartitioner
from mobilekit.export.backends.executorch.quantize import _quantize_linears_
from torch import Tensor, nn
from torch.nn import functional as F

from mobilekit.models.families import Phase, StateForm, family_of
from mobilekit.models.modules.routing import SoftmaxRouting
from mobilekit.models.modules.static_moe import StaticMoE
from mobilekit.runtime.executorch import load_program

D, INNER, EXPERTS, TOP_K, LONGEST = 64, 32, 6, 2, 31


def _moe(seed: int = 0, *, normalize: bool = True) -> StaticMoE:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    return StaticMoE(
        SoftmaxRouting(normal(EXPERTS, D), top_k=TOP_K, normalize=normalize),
        normal(EXPERTS, 2 * INNER, D),
        normal(EXPERTS, D, INNER),
        act_fn=F.silu,
    )


class Block(nn.Module):
    """A sparse block on its own, at the path that it says it has."""

    def __init__(self, moe: StaticMoE) -> None:
        super().__init__()
        self.mlp = SparseExperts(moe, "mlp")

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the block's output."""
        return self.mlp(hidden)  # type: ignore[no-any-return]


@torch.no_grad()
def _file(block: Block, path: Path) -> Any:
    """Lower a block as ``lower_program`` does; return the loaded method."""
    experts = take_experts(block)
    rows = torch.export.Dim("rows", min=1, max=LONGEST)
    captured = torch.export.export(
        block, (torch.zeros(1, 3, D),), dynamic_shapes=({1: rows},), strict=False
    )
    edge = to_edge_transform_and_lower(
        captured,
        partitioner=[DecoderPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    edge = edge.transform([experts_to_delegates(experts, LONGEST)])
    config = ExecutorchBackendConfig(run_reinplace_pass=True, to_out_var_pass=ToShippedOperators())
    path.write_bytes(edge.to_executorch(config).buffer)
    return load_program(path).load_method("forward")


def _put_back(block: Block, experts: list[nn.Module]) -> Block:
    block.mlp.experts = nn.ModuleList(experts)
    return block


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 5), st.data())
def test_places_are_those_of_a_list_of_experts_rows(
    tokens: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    choice = st.permutations(range(experts)).map(lambda order: order[:top_k])
    index = torch.tensor([data.draw(choice) for _ in range(tokens)])
    sent = (index.unsqueeze(-1) == torch.arange(experts)).sum(dim=-2)
    order = [(t, e) for e in range(experts) for t in range(tokens) if e in index[t]]
    expected = [order.index((t, int(e))) for t in range(tokens) for e in index[t]]
    assert _places(sent, index).tolist() == expected


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("length", [1, 9])
def test_apart_they_compute_what_they_did_together(length: int, normalize: bool) -> None:
    moe = _moe(normalize=normalize)
    hidden = torch.randn(1, length, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(SparseExperts(moe, "mlp")(hidden), moe(hidden))


@pytest.fixture(scope="module", params=[0, 4, 8])
def lowered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Block, Any]:
    """Return a block in 32, 4 or 8 bits, and its file's method."""
    block = Block(_moe())
    if request.param:
        linears = [m for e in block.mlp.experts for m in (e.gate_up, e.down)]
        _quantize_linears_(block, {id(linear) for linear in linears}, request.param)
    experts = list(block.mlp.experts)
    method = _file(block, tmp_path_factory.mktemp("experts") / "block.pte")
    return _put_back(block, experts), method


@torch.no_grad()
def test_the_file_equals_eager_at_any_length(lowered: tuple[Block, Any]) -> None:
    block, method = lowered
    generator = torch.Generator().manual_seed(2)
    for length in (5, 1, LONGEST, 1, 2):
        hidden = torch.randn(1, length, D, generator=generator)
        (found,) = method.execute([hidden])
        torch.testing.assert_close(found, block(hidden), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_all_tokens_may_go_to_the_same_experts(lowered: tuple[Block, Any]) -> None:
    block, method = lowered
    hidden = torch.randn(1, 1, D).expand(1, LONGEST, D).contiguous()
    (found,) = method.execute([hidden])
    torch.testing.assert_close(found, block(hidden), atol=2e-5, rtol=1e-5)


def test_an_expert_with_other_weights_is_lowered_as_it_would_be_alone() -> None:
    experts = [SparseExperts(_moe(seed), "mlp").experts[0] for seed in (0, 1)]
    lower = expert_lowering(LONGEST)
    assert isinstance(experts[0], Expert)
    assert isinstance(experts[1], Expert)
    lower(experts[0])
    second, alone = lower(experts[1]), expert_lowering(LONGEST)(experts[1])
    assert second.processed_bytes == alone.processed_bytes
    named = (x.named_data_store_output for x in (second, alone))
    first, other = ({k: d.buffers[v.buffer_index] for k, v in d.pte_data.items()} for d in named)
    assert first == other


@pytest.mark.parametrize("bytes_each", [4, 2])
def test_calls_are_as_short_as_the_experts_rows_ask_for(
    bytes_each: int, tiny_qwen3_moe: nn.Module
) -> None:
    program = family_of(tiny_qwen3_moe).export_program(
        tiny_qwen3_moe, Phase("forward", StateForm.RESIDENT, 1 << 20)
    )
    assert int(program.dynamic_shapes["tokens"][1].max) == (1 << 20) - 1
    config: Any = tiny_qwen3_moe.config
    if bytes_each == 2:
        halve_(program)
    program, origin = split_experts_(program)
    longest = int(program.dynamic_shapes["tokens"][1].max)
    assert longest == (64 << 20) // (2 * bytes_each * config.num_experts * config.hidden_size)
    assert len(origin) == 2 * config.num_experts * config.num_hidden_layers
    assert {path.rpartition(".")[2] for path in origin.values()} == {"gate_up", "down"}
    assert not any(isinstance(m, StaticMoE) for m in program.module.modules())


def test_nothing_of_the_kind_changes_nothing(tiny_qwen3: nn.Module) -> None:
    phase = Phase("forward", StateForm.RESIDENT, 16)
    program = family_of(tiny_qwen3).export_program(tiny_qwen3, phase)
    assert split_experts_(program) == (program, {})
