"""One program (torch) → one Core ML model: capture, name the layers, convert."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mobilekit.models.families.base import Program
from mobilekit.runtime.mil.tools import coremltools, quiet

from .precision import KeepFp32
from .quantize import Quantizer
from .rewrites import name_logic_, scale_queries_
from .scheme import Scheme

_LAYER_OUTPUT = "layer_output"


def layer_value(index: int) -> str:
    """Return the name that the output of layer ``index`` gets in the program."""
    return f"{_LAYER_OUTPUT}_{index}"


@dataclass(frozen=True)
class Converted:
    """One program as Core ML has it.

    Attributes:
        function: Its pymil function.
        description: Protobuf description of its inputs, outputs and states.
    """

    function: Any
    description: Any


def convert(program: Program, scheme: Scheme, quantizer: Quantizer) -> Converted:
    """Convert one program, and store its weights as ``quantizer`` says.

    Mutated buffers become states, which Core ML keeps in fp16 whatever the program computes in.
    """
    import numpy as np

    captured = capture(program)
    with quiet(), alias_supported(), validated_once():
        ct = coremltools()
        _restart_numbering()
        model = ct.convert(
            captured,
            outputs=[ct.TensorType(name="logits", dtype=np.float32)],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=_compute_precision(ct, scheme),
            pass_pipeline=_pipeline(ct),
            skip_model_load=True,
        )
        function = model._mil_program.functions["main"]
        parameters = captured.graph_signature.inputs_to_parameters
        quantizer.apply_(function, {name: node for node, name in parameters.items()})
        return Converted(function, model.get_spec().description)


def _pipeline(ct: Any) -> Any:
    """Return coremltools' passes but one: equal weights of two layers must stay two constants.

    ``write_package`` joins them once each is stored as its layer wants it.
    """
    pipeline = ct.PassPipeline()
    pipeline.remove_passes({"common::const_deduplication"})
    return pipeline


def capture(program: Program) -> Any:
    """Export the program's module, its layer outputs renamed so that they can be found again."""
    import torch

    with quiet(), torch.no_grad():
        captured = torch.export.export(program.module, program.example_inputs, strict=False)
        captured = captured.run_decompositions({})
    name_logic_(captured.graph)
    scale_queries_(captured.graph)
    for index, path in enumerate(program.layers):
        node = _last_node(captured.graph, path)
        if node is not None:
            node._rename(layer_value(index))
    return captured


def _last_node(graph: Any, path: str) -> Any | None:
    """Return the last node that was made inside the module at ``path`` and is used."""
    last = None
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.users and any(scope[0] == path for scope in stack.values()):
            last = node
    return last


def _restart_numbering() -> None:
    """Forget the names of whatever this process converted or loaded before: equal bytes need it."""
    from coremltools.converters.mil.converter import _reset_conversion_state

    _reset_conversion_state()


def _compute_precision(ct: Any, scheme: Scheme) -> Any:
    if scheme.compute == "float32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=KeepFp32())


@contextlib.contextmanager
def alias_supported() -> Iterator[None]:
    """Teach coremltools ``aten.alias``, which newer torch emits and which copies nothing."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch import torch_op_registry as registry
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    table = registry._TORCH_OPS_REGISTRY.name_to_func_mapping
    if "alias" in table:
        yield
        return

    def alias(context: Any, node: Any) -> None:
        (value,) = _get_inputs(context, node, expected=1)
        context.add(mb.identity(x=value, name=node.name))

    registry.register_torch_op(alias)
    try:
        yield
    finally:
        del table["alias"]


@contextlib.contextmanager
def validated_once() -> Iterator[None]:
    """Spare the check of the whole program after each of a hundred passes.

    It is near half of the time of a conversion; ``write_package`` checks the result once, and
    parity runs it.
    """
    from coremltools.converters.mil.mil import Program as MilProgram

    validate = MilProgram.validate
    MilProgram.validate = lambda *_, **__: None
    try:
        yield
    finally:
        MilProgram.validate = validate
