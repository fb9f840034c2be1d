"""Graph rewrites: one operator for a norm and one for a rotation, instead of six or seven.

At decode every tensor has one row, so a step costs about as many microseconds as the graph has
nodes. The operators are those of ``onnxruntime-genai``'s own graphs.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import optimize
from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

from .capture import CONTRIB


class _Rotation(pattern.RewriteRuleClassBase):
    """``x·cos + rotate_half(x)·sin`` between two transposes → ``RotaryEmbedding``."""

    def pattern(
        self, op: Any, x: Any, cos: Any, sin: Any, start1: Any, end1: Any, start2: Any, end2: Any
    ) -> Any:
        """Match x (1, S, H, Dh), cos and sin (1, 1, S, Dh)."""
        heads_first = op.Transpose(x, perm=[0, 2, 1, 3])
        first = op.Slice(heads_first, start1, end1, [3], [1])
        second = op.Slice(heads_first, start2, end2, [3], [1])
        turned = op.Concat(op.Neg(second), first, axis=-1)
        return op.Transpose(heads_first * cos + turned * sin, perm=[0, 2, 1, 3])

    def check(self, op: Any, *_: Any, **bound: Any) -> Any:
        """Accept where the two slices are the two halves of a known head dimension."""
        result = pattern.MatchResult()
        x, start1, start2 = bound["x"], bound["start1"], bound["start2"]
        head_dim = _static(x, 3)
        starts = [_scalar(start1), _scalar(start2)]
        if head_dim is None or _static(x, 2) is None or starts != [0, head_dim // 2]:
            return result.fail("not the two halves of a known head dimension", x)
        return result

    def rewrite(self, op: Any, x: Any, cos: Any, sin: Any, **_: Any) -> Any:
        """Emit the operator on the packed layout (1, S, H·Dh), with row s of cos for position s."""
        heads, head_dim = int(x.shape[2]), int(x.shape[3])
        tables = [self._half(op, table, head_dim // 2) for table in (cos, sin)]
        packed = op.Reshape(x, _ints(op, 0, 0, -1))
        turned = op.RotaryEmbedding(packed, _ints(op, 0), *tables, _domain=CONTRIB)
        # shape inference knows no contrib operator
        turned.shape, turned.type = ir.Shape([*x.shape[:2], heads * head_dim]), x.type
        return op.Reshape(turned, _ints(op, 0, 0, heads, head_dim))

    @staticmethod
    def _half(op: Any, table: Any, half: int) -> Any:
        """Return the first half of cos or sin, (1, 1, S, Dh) → (S, Dh / 2)."""
        kept = op.Slice(table, _ints(op, 0), _ints(op, half), _ints(op, 3), _ints(op, 1))
        return op.Reshape(kept, _ints(op, -1, half))


def fuse(model: ir.Model) -> dict[str, int]:
    """Rewrite ``model`` in place; return how often each fused operator stands in it."""
    passes.ShapeInferencePass()(model)
    fuse_rms_normalization(model)
    rotation = _Rotation.rule()  # type: ignore[no-untyped-call]
    pattern.RewriteRuleSet([rotation]).apply_to_model(model)
    fuse_skip_rms_normalization(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimize(model)
    _drop_idle_reshapes(model)
    passes.RemoveUnusedNodesPass()(model)
    ours = ("GroupQueryAttention", "RotaryEmbedding", "SimplifiedLayerNormalization")
    counts = dict.fromkeys((*ours, "SkipSimplifiedLayerNormalization"), 0)
    for node in model.graph:
        if node.op_type in counts:
            counts[node.op_type] += 1
    return counts


def _drop_idle_reshapes(model: ir.Model) -> None:
    """Remove each ``Reshape`` to the shape that its input has already."""
    for node in list(model.graph):
        source, result = (node.inputs or (None,))[0], node.outputs[0]
        if node.op_type != "Reshape" or source is None or result.is_graph_output():
            continue
        if source.shape is not None and source.shape == result.shape:
            ir.convenience.replace_all_uses_with(result, source)
            model.graph.remove(node, safe=True)


def _ints(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _static(value: Any, dim: int) -> int | None:
    size = value.shape[dim] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


def _scalar(value: Any) -> int | None:
    constant = ir.convenience.get_const_tensor(value)
    return int(constant.numpy().item()) if constant is not None and constant.size == 1 else None
