"""Experts as delegates: one is captured and lowered, the others are it with other weights.

In a captured program an expert is one opaque call, so that lowering retraces a node for it and not
its thirty; each retracing takes a millisecond a node, and there may be thousands of experts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.backend.backend_api import to_backend
from executorch.exir.lowered_backend_module import LoweredBackendModule
from executorch.exir.passes import ToOutVarPass
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult

from .experts import Expert, SparseExperts, expert_path
from .partition import DecoderPartitioner
from .rewrites import drop_copies

_CALL = torch.ops.mobilekit.expert.default
_Weights = dict[str, Tensor]  # by name, a quantized weight's parts apart


class ToShippedOperators(ToOutVarPass):  # type: ignore[misc]
    """Puts the runtime's own operators in the place of those that are for capture only.

    It is the first step after the last one that computes shapes anew.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite the graph, then give every operator its out variant."""
        shipped = {
            torch.ops.mobilekit.rows_where.default: torch.ops.aten.nonzero.default,
            torch.ops.mobilekit.stack_rows.default: torch.ops.aten.cat.default,
        }
        for node in graph_module.graph.nodes:
            if _operator(node) in shipped:
                node.target, node.args = shipped[_operator(node)], node.args[:1]
        graph_module.recompile()
        return super().call(graph_module)  # type: ignore[no-any-return]


def take_experts(module: nn.Module) -> dict[str, Expert]:
    """Take the experts out of a program that is to be captured; return them by path."""
    taken: dict[str, Expert] = {}
    for block in module.modules():
        if isinstance(block, SparseExperts):
            for number, expert in enumerate(block.experts):
                assert isinstance(expert, Expert)
                taken[expert_path(block.path, number)] = expert
            block.experts = nn.ModuleList()
    return taken


def experts_to_delegates(
    experts: dict[str, Expert], longest: int
) -> Callable[[fx.GraphModule], PassResult]:
    """Return the pass that replaces the calls of experts in a lowered graph by delegates.

    Args:
        experts: By path.
        longest: Most rows that an expert may get.
    """
    lower = expert_lowering(longest)

    def rewrite(graph_module: fx.GraphModule) -> PassResult:
        for node in list(graph_module.graph.nodes):
            if _operator(node) is _CALL:
                _put_delegate(graph_module, node, lower(experts[node.args[1]]))
        graph_module.recompile()
        return PassResult(graph_module, bool(experts))

    return rewrite


def _put_delegate(
    graph_module: fx.GraphModule, node: fx.Node, lowered: LoweredBackendModule
) -> None:
    hidden, path = node.args
    name = f"expert_{path}".replace(".", "_")
    graph_module.add_submodule(name, lowered)
    graph = graph_module.graph
    with graph.inserting_before(node):
        call = graph.call_function(
            torch.ops.higher_order.executorch_call_delegate, (graph.get_attr(name), hidden)
        )
        result = graph.call_function(operator.getitem, (call, 0))
    call.meta["val"], result.meta["val"] = [node.meta["val"]], node.meta["val"]
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def expert_lowering(longest: int) -> Callable[[Expert], LoweredBackendModule]:
    """Return the function that lowers an expert for XNNPACK, capturing each layout once."""
    known: dict[Any, tuple[LoweredBackendModule, dict[str, str]]] = {}

    def lower(expert: Expert) -> LoweredBackendModule:
        weights = _weights(expert)
        layout = tuple((name, w.shape, w.dtype) for name, w in weights.items())
        if layout not in known:
            lowered = _lower_one(expert, longest)
            known[layout] = lowered, _names_of(lowered.original_module, weights)
            return lowered
        first, names = known[layout]
        program = _with_weights(first.original_module, names, weights)
        return to_backend(first.backend_id, program, first.compile_specs)

    return lower


def _lower_one(expert: Expert, longest: int) -> LoweredBackendModule:
    linear = expert.gate_up
    example = torch.zeros(3, linear.in_features, dtype=linear.weight.dtype)
    rows = torch.export.Dim("rows", min=0, max=longest)
    captured = torch.export.export(expert, (example,), dynamic_shapes=({0: rows},), strict=False)
    edge = to_edge_transform_and_lower(
        captured,
        transform_passes=[drop_copies],
        partitioner=[DecoderPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    (lowered,) = (
        module
        for module in edge.exported_program().graph_module.children()
        if isinstance(module, LoweredBackendModule)
    )
    return lowered


def _weights(expert: Expert) -> _Weights:
    found = {}
    for name, weight in expert.named_parameters():
        if hasattr(weight, "__tensor_flatten__"):  # torchao's
            parts, _ = weight.__tensor_flatten__()
            found.update({f"{name}.{part}": getattr(weight, part) for part in parts})
        else:
            found[name] = weight.detach()
    return found


def _names_of(program: ExportedProgram, weights: _Weights) -> dict[str, str]:
    """Return by which of our names a program's tensors go, told by where their data are."""
    at = {weight.data_ptr(): name for name, weight in weights.items()}
    return {key: at[tensor.data_ptr()] for key, tensor in program.state_dict.items()}


def _with_weights(
    program: ExportedProgram, names: dict[str, str], weights: _Weights
) -> ExportedProgram:
    """Return the program with other weights of the same shapes; the graph is shared."""
    state: dict[str, Tensor | nn.Parameter] = {
        key: nn.Parameter(weights[names[key]], requires_grad=False) for key in program.state_dict
    }
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict=state,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        constants=program.constants,
        verifiers=[program.verifier],
    )


def _operator(node: fx.Node) -> Any:
    """Return the ATen operator that a node calls, which an edge operator stands for."""
    return getattr(node.target, "_op", node.target)
