"""Graph rewrites before partitioning: the same values in operators that XNNPACK accepts.

What XNNPACK does not accept cuts the graph, and each cut costs a delegate call at run time.
"""

from __future__ import annotations

import torch
from executorch.exir.dialects._ops import ops
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

_EDGE = ops.edge
_RESHAPES = {
    _EDGE.aten.view_copy.default,
    _EDGE.aten.unsqueeze_copy.default,
    _EDGE.aten.squeeze_copy.dims,
}
_COPIES = {
    _EDGE.aten.clone.default,
    _EDGE.dim_order_ops._clone_dim_order.default,
    _EDGE.dim_order_ops._to_dim_order_copy.default,
}


def drop_copies(graph_module: fx.GraphModule) -> PassResult:
    """Remove copies that change neither dtype nor layout: edge operators never alias."""
    changed = False
    for node in list(graph_module.graph.nodes):
        if node.target not in _COPIES or node.args[0].op != "call_function":
            continue
        before, after = node.args[0].meta["val"], node.meta["val"]
        if before.dtype == after.dtype and before.dim_order() == after.dim_order():
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
            changed = True
    return _done(graph_module, changed)


def infer_free_dimension(graph_module: fx.GraphModule) -> PassResult:
    """Write every reshape as a view whose one free dimension is -1 instead of a symbol."""
    changed = False
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node.target not in _RESHAPES:
            continue
        shape = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        if shape.count(-1) <= 1:
            node.target = _EDGE.aten.view_copy.default
            node.args, node.kwargs = (node.args[0], shape), {}
            changed = True
    return _done(graph_module, changed)


def mean_row(size: int) -> torch.Tensor:
    """Return the row whose product with a vector of ``size`` is its mean, shape (1, size)."""
    return torch.full((1, size), 1.0 / size)


def mean_as_product(graph_module: fx.GraphModule) -> PassResult:
    """Write a mean over the last dimension as a product with a constant row.

    XNNPACK's own mean needs 4-D tensors in channels-last order.
    """
    graph, changed = graph_module.graph, False
    for node in list(graph.nodes):
        if node.target != _EDGE.aten.mean.dim or not _is_last_mean(node):
            continue
        source = node.args[0].meta["val"]
        name = f"_mean_row_{source.shape[-1]}"
        if not hasattr(graph_module, name):
            graph_module.register_buffer(name, mean_row(source.shape[-1]), persistent=False)
        with graph.inserting_before(node):
            row = graph.get_attr(name)
            row.meta["val"] = source.fake_mode.from_tensor(getattr(graph_module, name))
            product = graph.call_function(_EDGE.aten.linear.default, (node.args[0], row))
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
        changed = True
    return _done(graph_module, changed)


def _is_last_mean(node: fx.Node) -> bool:
    source = node.args[0].meta["val"]  # type: ignore[union-attr]
    dims, keepdim = list(node.args[1]), len(node.args) > 2 and node.args[2]  # type: ignore[arg-type]
    return (
        dims in ([-1], [source.dim() - 1])
        and bool(keepdim)
        and isinstance(source.shape[-1], int)
        and source.dtype == torch.float32
        and node.kwargs.get("dtype") in (None, torch.float32)
    )


def _done(graph_module: fx.GraphModule, changed: bool) -> PassResult:
    if changed:
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
    return PassResult(graph_module, changed)
