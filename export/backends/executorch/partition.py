"""Which operators XNNPACK computes: dense, elementwise and softmax ones, at any length."""

from __future__ import annotations

from typing import Any

import torch
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor, register_node_visitor
from executorch.backends.xnnpack.partition import config as xnnpack
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    XNNConvert,
    XNNStaticSlice,
    XNode,
)
from executorch.backends.xnnpack.utils.utils import is_param_node
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from torch.export import ExportedProgram


class ShortCatConfig(xnnpack.CatConfig):  # type: ignore[misc]
    """Concatenation of as many tensors as XNNPACK has an operator for."""

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Tell whether XNNPACK takes ``node`` as it is."""
        return len(node.all_input_nodes) <= 5 and bool(super().check_constraints(node, ep))


class ExactGeluConfig(xnnpack.GeluConfig):  # type: ignore[misc]
    """GELU by the error function: XNNPACK computes it whatever the operator says.

    The tanh form differs by up to 4.7e-4, which tiny Gemma logits showed as 5.9e-4.
    """

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Accept the operator if it does not ask for the tanh form."""
        return node.kwargs.get("approximate", "none") == "none" and bool(
            super().check_constraints(node, ep)
        )


class OpenSliceConfig(xnnpack.SliceCopyConfig):  # type: ignore[misc]
    """Contiguous slices of a fixed dimension, the others being of any length."""

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Tell whether :class:`OpenSliceVisitor` can write ``node``."""
        args: tuple[Any, ...] = node.args
        size = args[0].meta["val"].shape[args[1]]
        return (
            bool(self.check_common_constraints(node, ep))
            and all(isinstance(bound, int) for bound in (size, *args[1:]))
            and (len(args) < 5 or bool(args[4] == 1))
        )


class OpenSliceVisitor(NodeVisitor):  # type: ignore[misc]
    """Writes a slice with 0 for each symbolic size, by which XNNPACK means the input's own.

    It takes the place of ExecuTorch's own visitor, which would write the upper bound.
    """

    target = "aten.slice_copy.Tensor"

    def define_node(
        self, node: torch.fx.Node, xnn_graph: Any, vals_to_ids: dict[Any, int], debug_handle: int
    ) -> None:
        """Append the node to the graph."""
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        args: tuple[Any, ...] = node.args
        source, shape = args[0], args[0].meta["val"].shape
        dim, start = args[1], args[2] if len(args) > 2 else 0
        offsets = [0] * len(shape)
        offsets[dim] = min(start + shape[dim] if start < 0 else start, shape[dim])
        sizes = [size if isinstance(size, int) else 0 for size in node.meta["val"].shape]
        xnn_graph.xnodes.append(
            XNode(
                XNNStaticSlice(
                    num_dims=len(shape),
                    offsets=offsets,
                    sizes=sizes,
                    input_id=vals_to_ids[source],
                    output_id=vals_to_ids[node],
                    flags=0,
                ),
                debug_handle,
            )
        )


register_node_visitor(OpenSliceVisitor)


class ConversionConfig(xnnpack.ToDimOrderCopyConfig):  # type: ignore[misc]
    """Conversions between float16 and float32, which norms in half precision are full of."""

    def check_constraints(self, node: torch.fx.Node, ep: ExportedProgram) -> bool:
        """Tell whether :class:`ConversionVisitor` can write ``node``."""
        source: Any = node.args[0]
        before, after = source.meta["val"], node.meta["val"]
        return (
            {before.dtype, after.dtype} == {torch.float16, torch.float32}
            and before.dim_order() == after.dim_order()
            and not is_param_node(ep, source)
        )


class ConversionVisitor(NodeVisitor):  # type: ignore[misc]
    """Writes a conversion; ExecuTorch has the operator, but no visitor for it."""

    target = "dim_order_ops._to_dim_order_copy.default"

    def define_node(
        self, node: torch.fx.Node, xnn_graph: Any, vals_to_ids: dict[Any, int], debug_handle: int
    ) -> None:
        """Append the node to the graph."""
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        ids = {"input_id": vals_to_ids[node.args[0]], "output_id": vals_to_ids[node]}
        xnn_graph.xnodes.append(XNode(XNNConvert(**ids, flags=0), debug_handle))


register_node_visitor(ConversionVisitor)

# Only operators whose XNNPACK form needs none of the passes that LINEAR_ONLY leaves out (channels
# last, batch norm, padding, up-sampling, concatenations of more than five, pooling).
_CONFIGS = [
    xnnpack.AbsConfig,
    xnnpack.AddConfig,
    xnnpack.AddmmConfig,
    xnnpack.BMMConfig,
    xnnpack.ChooseQParamsAffineConfig,
    xnnpack.CosConfig,
    xnnpack.DeQuantizeAffineConfig,
    xnnpack.DivConfig,
    xnnpack.ExpConfig,
    ExactGeluConfig,
    xnnpack.LinearConfig,
    xnnpack.MMConfig,
    xnnpack.MulConfig,
    xnnpack.NegConfig,
    xnnpack.PermuteConfig,
    xnnpack.PowConfig,
    xnnpack.QuantizeAffineConfig,
    xnnpack.ReciprocalSquareRootConfig,
    xnnpack.SigmoidConfig,
    xnnpack.SinConfig,
    xnnpack.SoftmaxConfig,
    xnnpack.SquareRootConfig,
    xnnpack.SubConfig,
    xnnpack.TanhConfig,
    xnnpack.ViewCopyConfig,
    OpenSliceConfig,
    ConversionConfig,
    ShortCatConfig,
]
# with this compile spec XNNPACK's preprocessing runs its linear pass only, not all seventeen
_LINEAR_ONLY = CompileSpec("dqlinear_partitioner", b"")


class DecoderPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK partitioner for decoder programs: dense, elementwise and softmax operators."""

    def __init__(self) -> None:
        super().__init__(configs=_CONFIGS)
        self.delegation_spec = DelegationSpec("XnnpackBackend", [_LINEAR_ONLY])

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[Any], None]:
        """Keep the same operators whole, without a filter: a filter costs four more retracings.

        The filter would decompose linears that XNNPACK cannot take, such as those with weights
        computed at run time; a decoder has none, and if it had, lowering would fail aloud.
        """
        keep, _ = super().ops_to_not_decompose(ep)
        return keep, None
