"""Capture: the family's program as an ONNX graph that ONNX Runtime runs well.

Attention leaves as one ``GroupQueryAttention`` a layer, the operator of ``onnxruntime-genai``'s own
graphs: it appends to the cache, repeats no key head, and lets a host bind one buffer as past and
present. It is put in through transformers' attention interface, so any decoder that uses the
interface comes out the same way.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobilekit.models.families import Phase, Program, StateForm
from mobilekit.models.modules.cache import DelegatedCache, cache_argument
from mobilekit.models.modules.static_moe import StaticMoE

if TYPE_CHECKING:
    import onnx_ir as ir

    from mobilekit.models.families import Family

OPSET = 21
CONTRIB = "com.microsoft"
TAP_SUFFIX = ".hidden"
_ATTENTION = "mobilekit_group_query_attention"
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass
class _Run:
    """What one forward of :class:`GroupQueryDecoder` hands to its attention calls."""

    past: list[Tensor]  # [k0, v0, k1, …], each (1, Hkv, P, Dh)
    last: Tensor  # (1,) int32, index of the last valid position
    total: Tensor  # () int32, P + S
    present: list[Tensor] = field(default_factory=list)


def _new_states_only(_layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Hand new keys and values through: the attention operator owns the cache."""
    return key, value


def _group_query_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    run: _Run,
    scaling: float,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Emit ``GroupQueryAttention``; query (1, H, S, Dh), key and value (1, Hkv, S, Dh)."""
    heads, length, head_dim = query.shape[1:]
    kv_heads = key.shape[1]
    past_key, past_value = run.past[2 * module.layer_idx : 2 * module.layer_idx + 2]
    packed = [t.transpose(1, 2).reshape(1, length, -1) for t in (query, key, value)]
    grown = [1, kv_heads, past_key.shape[2] + length, head_dim]
    output, *present = torch.onnx.ops.symbolic_multi_out(
        f"{CONTRIB}::GroupQueryAttention",
        (*packed, past_key, past_value, run.last, run.total),
        {"num_heads": heads, "kv_num_heads": kv_heads, "scale": float(scaling)},
        dtypes=(query.dtype,) * 3,
        shapes=([1, length, heads * head_dim], grown, grown),
        version=1,
    )
    run.present.extend(present)
    return output.view(1, length, heads, head_dim), None


class GroupQueryDecoder(nn.Module):
    """The explicit-cache program with contrib attention and the layers' outputs as taps.

    Args:
        program: Explicit-state program of a family; its (private) copy of the model is changed.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.model: Any = program.module.get_submodule("model")
        config: Any = self.model.config
        config._attn_implementation = _ATTENTION
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
        run = _Run(past, last, torch.full((), total, dtype=torch.int32))
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
        model: The graph, float32, with the layers' outputs as extra graph outputs.
        program: The family's program, whose inputs and outputs the graph has.
        taps: Layer path in the checkpoint ("model.layers.0") → name of its output's value.
        routers: Names of the nodes that compute router logits, which stay float32.
    """

    model: ir.Model
    program: Program
    taps: dict[str, str]
    routers: tuple[str, ...]


def capture(model: nn.Module, family: Family, context_length: int) -> Captured:
    """Trace the model's dynamic-length program to ONNX; ``model`` stays as it is."""
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _group_query_attention)
    phase = Phase("forward", StateForm.EXPLICIT, context_length)
    program = family.export_program(model, phase)
    taps = {path.removeprefix("model."): "" for path in program.layers}
    taps = {path: path + TAP_SUFFIX for path in taps}
    routers = [n for n, m in program.module.named_modules() if isinstance(m, StaticMoE)]
    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            TappedProgram(program) if program.is_recurrent else GroupQueryDecoder(program),
            program.example_inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=program.dynamic_shapes,
            input_names=[spec.name for spec in program.inputs],
            output_names=[*(spec.name for spec in program.outputs), *taps.values()],
            verbose=False,
        )
    graph = exported.model  # type: ignore[union-attr]
    return Captured(graph, program, taps, _linear_nodes(graph, [f"{n}.router" for n in routers]))


def _linear_nodes(model: ir.Model, paths: list[str]) -> tuple[str, ...]:
    """Return the nodes' names of the linears at ``paths``, by the scopes the exporter records."""
    found = {
        path: node.name
        for node in model.graph
        for path in paths
        if node.op_type == "MatMul" and f"'{path}'" in node.metadata_props.get(_SCOPES, "")
    }
    if missing := [path for path in paths if path not in found]:
        raise RuntimeError(f"the exporter left no MatMul for {missing}")
    return tuple(str(found[path]) for path in paths)


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
