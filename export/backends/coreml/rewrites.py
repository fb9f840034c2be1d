"""Changes to a captured graph before coremltools sees it; none changes what it computes."""

from __future__ import annotations

from typing import Any


def name_logic_(graph: Any) -> None:
    """Call ``a & b``, which windowed masks are made with, by the name that coremltools knows."""
    import torch

    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is aten.__and__.Tensor:
            node.target = aten.bitwise_and.Tensor


def scale_queries_(graph: Any) -> None:
    """Turn ``(q kᵀ) · c`` into ``(q · c) kᵀ``: unscaled scores overflow fp16 in some models."""
    import torch

    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.mul.Tensor:
            continue
        product, factor = node.args
        if not isinstance(factor, float) or product.target is not aten.matmul.default:
            continue
        if len(product.users) > 1 or any(user.op == "output" for user in node.users):
            continue  # the signature knows an output by its name
        query, key = product.args
        with graph.inserting_before(product):
            scaled = graph.call_function(aten.mul.Tensor, (query, factor))
        scaled.meta = dict(query.meta)
        product.args = (scaled, key)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
