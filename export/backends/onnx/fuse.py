"""Graph rewrites: fewer nodes that compute the same.

At decode every tensor has one row, so a step costs about as many microseconds as the graph has
nodes. The operators are those of ``onnxruntime-genai``'s own graphs.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import optimize
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

from .merge import merge_products, pack_attention_inputs
from .norms import NORM

_OURS = ("GroupQueryAttention", "MatMulNBits", "QMoE", NORM, f"Skip{NORM}")


def fuse(model: ir.Model) -> dict[str, int]:
    """Rewrite ``model`` in place; return how often each fused operator stands in it."""
    passes.ShapeInferencePass()(model)
    _norm_before_transpose(model)
    fuse_skip_rms_normalization(model)
    merge_products(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimize(model)
    _drop_idle_reshapes(model)
    pack_attention_inputs(model)
    passes.RemoveUnusedNodesPass()(model)
    counts = dict.fromkeys(_OURS, 0)
    for node in model.graph:
        if node.op_type in counts:
            counts[node.op_type] += 1
    return counts


def _norm_before_transpose(model: ir.Model) -> None:
    """Normalize heads before they are transposed, where the transposition can then cancel out.

    Gemma 3 does it the other way around; the norm over the last axis is the same.
    """
    for norm in list(model.graph):
        turn = norm.inputs[0].producer() if norm.op_type == NORM and norm.inputs[0] else None
        if turn is None or turn.op_type != "Transpose" or len(turn.outputs[0].uses()) > 1:
            continue
        order = turn.attributes["perm"].as_ints()
        if order[-1] != len(order) - 1:
            continue
        normalized, turned = norm.outputs[0], turn.outputs[0]
        source = turn.inputs[0]
        norm.replace_input_with(0, source)
        ir.convenience.replace_all_uses_with(normalized, turned)
        turn.replace_input_with(0, normalized)
        normalized.shape = source.shape if source is not None else None
        model.graph.remove(turn)
        model.graph.insert_after(norm, turn)  # it reads the norm now


def _drop_idle_reshapes(model: ir.Model) -> None:
    """Remove each ``Reshape`` to the shape that its input has already."""
    for node in list(model.graph):
        source, result = (node.inputs or (None,))[0], node.outputs[0]
        if node.op_type != "Reshape" or source is None or result.is_graph_output():
            continue
        if source.shape is not None and source.shape == result.shape:
            ir.convenience.replace_all_uses_with(result, source)
            model.graph.remove(node, safe=True)
