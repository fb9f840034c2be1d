"""Capture: the family's program as an ONNX graph that ONNX Runtime runs well.

Attention, norms and few-bit layers leave as the operators of ``onnxruntime-genai``'s own graphs.
They are put in through transformers' attention interface and in the place of modules, so any
decoder that uses the interface comes out the same way.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobilekit.models.families import Phase, Program, StateForm
from mobilekit.models.modules.cache import DelegatedCache, cache_argument

from ...precision import checkpoint_path
from .attention import ATTENTION, AttentionRun, group_query_attention
from .norms import replace_norms
from .quantize import quantize_program
from .rotary import Rotation

if TYPE_CHECKING:
    import onnx_ir as ir

    from mobilekit.models.families import Family

    from ..base import ExportSpec

OPSET = 21
TAP_SUFFIX = ".hidden"


def _new_states_only(_layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Hand new keys and values through: the attention operator owns the cache."""
    return key, value


class GroupQueryDecoder(nn.Module):
    """The explicit-cache program with contrib attention and the layers' outputs as taps.

    Args:
        program: Explicit-state program of a family; its (private) copy of the model is changed.
        context_length: Positions that the cache holds.
    """

    def __init__(self, program: Program, context_length: int) -> None:
        super().__init__()
        body: Any = program.module.get_submodule("model")
        self.model = body
        body.config._attn_implementation = ATTENTION
        self.rotation = Rotation(body, context_length)
        replace_norms(body)
        self._taps: list[Tensor] = []
        for path in program.layers:
            program.module.get_submodule(path).register_forward_hook(self._tap)

    def _tap(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._taps.append(output[0] if isinstance(output, tuple) else output)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the last logits (1, 1, V), the grown cache, each layer's output (1, S, D)."""
        total = attention_mask.shape[1]
        last = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        run = AttentionRun(past, last, torch.full((), total, dtype=torch.int32), self.rotation)
        self._taps = []
        # a 4-D mask is taken as it is; the attention operator masks causally by itself
        mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            run=run,
            **cache_argument(self.model, DelegatedCache(_new_states_only)),
        )
        return output.logits, run.present, self._taps


class TappedProgram(nn.Module):
    """A recurrent program, which has no attention to replace, with its layers' outputs as taps.

    Args:
        program: Explicit-state program of a family.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program.module
        self._taps: list[Tensor] = []
        for path in program.layers:
            program.module.get_submodule(path).register_forward_hook(self._tap)

    def _tap(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._taps.append(output)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Return the program's outputs, then each layer's output (1, 1, D)."""
        self._taps = []
        return *self.program(*inputs), self._taps


@dataclass(frozen=True)
class Captured:
    """An ONNX graph and what the later steps need to know about it.

    Attributes:
        model: The graph, with the layers' outputs as extra graph outputs.
        program: The family's program, whose inputs and outputs the graph has.
        taps: Layer path in the checkpoint ("model.layers.0") → name of its output's value.
        quantized: The record of the few-bit layers; empty for a float precision.
    """

    model: ir.Model
    program: Program
    taps: dict[str, str]
    quantized: dict[str, Any]


def capture(model: nn.Module, family: Family, spec: ExportSpec) -> Captured:
    """Trace the model's dynamic-length program to ONNX; ``model`` stays as it is."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, group_query_attention)
    phase = Phase("forward", StateForm.EXPLICIT, spec.context_length)
    program = family.export_program(model, phase)
    quantized = {}
    if spec.precision.is_quantized:
        quantized = quantize_program(program, spec.precision)
    taps = {path: path + TAP_SUFFIX for path in map(checkpoint_path, program.layers)}
    tables: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    decoder: nn.Module
    if program.is_recurrent:
        decoder = TappedProgram(program)
    else:
        decoder = GroupQueryDecoder(program, spec.context_length)
        tables = decoder.rotation.taken_out()
    with _quiet(), torch.no_grad(), tables:
        exported = torch.onnx.export(
            decoder,
            program.example_inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=program.dynamic_shapes,
            input_names=[value.name for value in program.inputs],
            output_names=[*(value.name for value in program.outputs), *taps.values()],
            verbose=False,
        )
    return Captured(exported.model, program, taps, quantized)  # type: ignore[union-attr]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about packages and registrations that do not concern us."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in levels:
                logger.setLevel(level)
