"""One forward pass of a causal language model that also gives each layer's routing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["forward_with_routing", "routes"]


def routes(model: nn.Module) -> bool:
    """Whether the model has routers whose logits transformers can hand out."""
    return hasattr(getattr(model, "config", None), "output_router_logits")


def forward_with_routing(model: Any, input_ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits and router logits, with gradients.

    Args:
        model: A causal language model of transformers.
        input_ids: Shape (B, S).

    Returns:
        Logits of shape (B, S, V), and for each routed layer (B·S, E); none for a dense model.
    """
    if not routes(model):
        return model(input_ids=input_ids, use_cache=False).logits, ()
    captured: list[tuple[Tensor, ...]] = []

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_router_logits": True}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        captured.append(tuple(output.router_logits or ()))

    # Asked of the whole model, transformers adds all layers' routing into one tensor, which
    # fails where layers keep different numbers of experts; so only the base model is asked.
    base = model.base_model
    handles = [base.register_forward_pre_hook(ask, with_kwargs=True)]
    handles.append(base.register_forward_hook(keep))
    try:
        output = model(input_ids=input_ids, use_cache=False, output_router_logits=False)
    finally:
        for handle in handles:
            handle.remove()
    return output.logits, captured[-1]
