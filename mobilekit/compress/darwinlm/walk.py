"""Calibration layer by layer: one decoder layer works at a time, wherever the others lie.

The hidden states go from layer to layer by the dense weights, so that what is found for one layer
does not depend on what is chosen for another. The model stays where it is; the layer that works is
moved to the device and back, so a model larger than a GPU's memory can be worked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Look = Callable[[Tensor], None]  # at the inputs (B, S, d) of a linear layer


class LayerWalk:
    """Hidden states of calibration tokens, at the entrance of one decoder layer after the other.

    Args:
        model: A decoder in evaluation mode; nothing of it has changed afterwards.
        batches: Token ids, each of shape (B, S), without padding.
        device: Where layers work.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], device: torch.device) -> None:
        self._model = model
        self._device = device
        self._layers: Any = model.get_submodule("model.layers")
        self._hidden: list[Tensor] = []
        self._calls: list[list[dict[str, Any]]] = []  # of each batch, the arguments of each layer
        by_shape: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for batch in batches:
            hidden, calls = self._enter(batch)
            self._hidden.append(hidden)
            # without padding, masks and positions are those of any batch of the shape
            self._calls.append(by_shape.setdefault(tuple(batch.shape), calls))

    def _enter(self, batch: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return what enters the first layer, and how every layer is called."""
        entered: list[Tensor] = []
        calls: list[dict[str, Any]] = []

        def record(hidden: Tensor, **arguments: Any) -> Tensor:
            entered.append(hidden)
            calls.append(arguments)
            return hidden

        base: Any = self._model.get_submodule("model")
        home = next(self._model.parameters()).device
        with _forward_replaced(self._layers, record), torch.no_grad():
            base(input_ids=batch.to(home), use_cache=False)
        return entered[0], calls

    def step(self, layer: int, looks: Mapping[str, Look]) -> None:
        """Run every batch through a layer; it must be the next one.

        Args:
            layer: Index of the layer.
            looks: Path of a linear layer in the model to what looks at its inputs.
        """
        module = self._layers[layer]
        home = next(module.parameters()).device
        module.to(self._device)
        try:
            with _looking(self._model, looks), torch.no_grad():
                for number, hidden in enumerate(self._hidden):
                    arguments = _moved(self._calls[number][layer], self._device)
                    self._hidden[number] = module(hidden.to(self._device), **arguments).to(home)
        finally:
            module.to(home)


@contextmanager
def _forward_replaced(layers: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again


@contextmanager
def _looking(model: nn.Module, looks: Mapping[str, Look]) -> Iterator[None]:
    def hook(look: Look) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, inputs: look(inputs[0])

    with ExitStack() as stack:
        for path, look in looks.items():
            handle = model.get_submodule(path).register_forward_pre_hook(hook(look))
            stack.callback(handle.remove)
        yield


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(entry, device) for entry in value)
    return value
