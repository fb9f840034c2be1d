"""Find the first layer of a saved package that does not compute what the reference does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilekit.models.families import Family
from mobilekit.runtime.coreml import chunks
from mobilekit.runtime.mil import MilFunction, load_functions, load_spec
from mobilekit.runtime.mil.layout import Array

from ..base import ExportSpec
from .convert import layer_value
from .package import LAYERS_KEY
from .scheme import SCHEMES

if TYPE_CHECKING:
    from torch import nn


def first_diverging_layer(
    path: Path, model: nn.Module, family: Family, spec: ExportSpec, tokens: list[int]
) -> str | None:
    """Return "model.layers.N", or ``None`` where every layer agrees with the reference.

    A layer diverges where the root mean square of the difference of its outputs, over all tokens,
    exceeds the precision's share of the root mean square of the reference's.
    """
    from .reference import eager_module

    module, chunk = eager_module(model, family, spec)
    layers = json.loads(load_spec(path).description.metadata.userDefined[LAYERS_KEY])
    expected = _eager_outputs(module, layers, chunk, tokens)
    found = _package_outputs(path, len(layers), chunk, tokens)
    bound = SCHEMES[spec.precision.name].layer_error
    for index, layer in enumerate(layers):
        if index in found and _relative_error(expected[index], found[index]) > bound:
            return str(layer).removeprefix("model.")
    return None


def _relative_error(expected: Array, found: Array) -> float:
    """Return the relative root mean square of the difference; infinite where not finite."""
    wide = expected.astype(np.float64)
    scale = max(float(np.linalg.norm(wide)), 1e-30)
    error = float(np.linalg.norm(found.astype(np.float64) - wide)) / scale
    return error if np.isfinite(error) else float("inf")


def _eager_outputs(
    module: Any, layers: list[str], chunk: int | None, tokens: list[int]
) -> list[Array]:
    """Return each layer's outputs over all tokens, (S, D)."""
    import torch

    from .reference import EagerPackage

    seen: list[list[Array]] = [[] for _ in layers]

    def recorder(rows: list[Array]) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            rows.append(value[0].float().numpy())

        return hook

    hooks = [
        module.get_submodule(path).register_forward_hook(recorder(rows))
        for path, rows in zip(layers, seen, strict=True)
    ]
    try:
        with torch.no_grad():
            module.reset()
            EagerPackage(module, chunk)(torch.tensor([tokens]), torch.tensor([0]))
    finally:
        for handle in hooks:
            handle.remove()
    return [np.concatenate(rows) for rows in seen]


def _package_outputs(
    path: Path, count: int, chunk: int | None, tokens: list[int]
) -> dict[int, Array]:
    """Return the outputs of every layer that can be found in the package's functions."""
    functions = load_functions(path)
    states = functions["decode"].zero_states()
    taps = {name: _taps(function, count) for name, function in functions.items()}
    seen: dict[int, list[Array]] = {}
    for name, start, stop in chunks(len(tokens), chunk):
        feeds = {
            "input_ids": np.asarray([tokens[start:stop]], dtype=np.int32),
            "input_pos": np.asarray([start], dtype=np.int32),
        }
        values = functions[name](feeds, states, tuple(taps[name].values()))
        for index, value in taps[name].items():
            seen.setdefault(index, []).append(values[value][0])
    return {index: np.concatenate(rows) for index, rows in seen.items()}


def _taps(function: MilFunction, count: int) -> dict[int, str]:
    """Return the name of each layer's output; the fp16 pass adds a suffix to some."""
    taps = {}
    for index in range(count):
        name = layer_value(index)
        for candidate in (name, f"{name}_cast_fp16"):
            if candidate in function.names:
                taps[index] = candidate
    return taps
