"""Float constants of a converted program → constants in few bits, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.runtime.mil.layout import Array

from .storage import StoredLayer, round_int4

_HALF = "_to_fp16"  # what coremltools' fp16 pass adds to a constant's name
_WEIGHT_OF = {"gather": "x", "linear": "weight"}  # operation → its argument


class Quantizer:
    """Replaces the weights of functions; a weight that several of them hold is computed once.

    Args:
        layers: What every layer is stored as, by path.
    """

    def __init__(self, layers: Mapping[str, StoredLayer]) -> None:
        self._layers = layers
        self._made: dict[tuple[str, str], tuple[Array, Array]] = {}

    def apply_(self, function: Any, constants: Mapping[str, str]) -> None:
        """Store every layer of ``function``, a pymil function in fp16, as it is to be stored.

        Args:
            function: Changed in place.
            constants: Name of the constant that each parameter of the program became.

        Raises:
            UnsupportedModelError: If a layer's weight is not found, or not what the layer holds.
        """
        by_name: dict[str, list[Any]] = {}
        for op in function.operations:
            if op.op_type == "const" and isinstance(op.outputs[0].val, np.ndarray):
                by_name.setdefault(op.name.removesuffix(_HALF), []).append(op)
        with function:  # once: leaving it walks the whole function
            self._store_(function, by_name, constants)

    def _store_(
        self, function: Any, by_name: Mapping[str, list[Any]], constants: Mapping[str, str]
    ) -> None:
        stored: dict[str, Any] = {}  # tied layers read one constant
        replaced = []
        for path, layer in self._layers.items():
            names = dict.fromkeys(constants[p] for p in layer.parameters if p in constants)
            found = [op for name in names for op in by_name.get(name, ())]
            readers = [(op, reader) for op in found for reader in _readers(op, layer)]
            _check_found(path, layer, readers)
            for const, reader in readers if layer.precision != "float" else []:
                name = f"{const.name}_{layer.precision}"
                if name not in stored:
                    stored[name] = self._constexpr(const, layer, name)
                # the same value in another form: types need no second look
                argument = {_WEIGHT_OF[reader.op_type]: stored[name]}
                reader.set_inputs(no_check_var_types=True, **argument)
                replaced.append(const)
        function.remove_ops([op for op in dict.fromkeys(replaced) if not op.outputs[0].child_ops])

    def _constexpr(self, const: Any, layer: StoredLayer, name: str) -> Any:
        from coremltools.converters.mil import Builder as mb

        key = layer.parameters[0], layer.precision
        if key not in self._made:
            self._made[key] = quantized(const.outputs[0].val, layer.precision)
        data, scale = self._made[key]
        return mb.constexpr_blockwise_shift_scale(
            data=data, scale=scale, before_op=const, name=name
        )


def quantized(weight: NDArray[np.float16], precision: str) -> tuple[Array, Array]:
    """Return data of ``precision``, shape (O, I), and its scales, shape (O, 1) or (O, I / GROUP).

    A row of zeros has scale 0 and data 0 in int8, where coremltools would divide 0 by 0.
    """
    from coremltools.converters.mil.mil import types
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

    if precision == "int4":
        codes, scales = round_int4(torch.from_numpy(weight))
        data = codes.flatten(1).numpy().astype(types.nptype_from_builtin(types.int4))
        return data, scales.numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        made = linear_quantize_weights.blockwise_compress_by_dtype(
            weight, types.int8, "LINEAR_SYMMETRIC", [1, 0]
        )
    made.data[np.repeat(made.scale == 0, weight.shape[1], axis=1)] = 0
    return made.data, made.scale


def _readers(const: Any, layer: StoredLayer) -> list[Any]:
    """Return the operations of the layer's kind that take the constant as their weight.

    Tied layers read one constant: a linear and an embedding are told apart by the operation.
    """
    from torch import nn

    kind = "gather" if isinstance(layer.module, nn.Embedding) else "linear"
    (var,) = const.outputs
    return [op for op in var.child_ops if op.op_type == kind and op.inputs[_WEIGHT_OF[kind]] is var]


def _check_found(path: str, layer: StoredLayer, readers: list[tuple[Any, Any]]) -> None:
    expected = layer.module.weight.detach().half().numpy()
    if not readers:
        reason = "is not found in the converted program"
    elif readers[0][0].outputs[0].dtype.__name__ != "fp16":
        reason = "is not in half precision in the converted program"
    elif not np.array_equal(readers[0][0].outputs[0].val, expected):
        reason = "has other values in the converted program"
    else:
        return
    raise UnsupportedModelError(
        f"the weight of layer '{path}' {reason}, so it cannot be stored in few bits",
        hint="Export to Core ML in fp16, or to another target.",
    )
