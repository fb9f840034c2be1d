"""A decoder-only language model as a program: prefill and decode with a key-value cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mobilekit.core.errors import UnsupportedModelError
from mobilekit.schema.manifest import TensorSpec

from .decoders import ArithmeticDecoder, DecoderProgram, ExplicitDecoder, ResidentDecoder

if TYPE_CHECKING:
    from mobilekit.models.families.base import Phase, Program


def decoder_program(
    model: nn.Module, phase: Phase, replaced: Mapping[str, nn.Module] | None = None
) -> Program:
    """Wrap a decoder LM for capture.

    Args:
        model: The model; left as it is.
        phase: Which state form, context length and (fixed or dynamic) length.
        replaced: Modules to put in place of the model's own, by path.

    Returns:
        The program; its weights are shared with ``model`` except in replaced modules.

    Raises:
        UnsupportedModelError: If a layer attends to a sliding window.
    """
    from mobilekit.models.families.base import StateForm

    _check_attention(model)
    body = _shallow_copy(model, replaced or {})
    build = {
        StateForm.RESIDENT: _resident,
        StateForm.EXPLICIT: _explicit,
        StateForm.ARITHMETIC: _arithmetic,
    }
    return build[phase.state](body, phase)


def _check_attention(model: nn.Module) -> None:
    """Refuse what the programs' causal mask would get wrong beyond a window's length."""
    config: Any = model.config
    listed = getattr(config, "layer_types", None)
    kinds = set(listed or ()) - {"full_attention"}
    if listed is None and getattr(config, "sliding_window", None) is not None:
        kinds.add("sliding_attention")  # Qwen3-MoE has one window for all layers
    if kinds:
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}, which cannot be "
            "exported",
            hint="Export a model whose layers all have full attention (use_sliding_window false).",
        )


def _shallow_copy(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """Copy the module tree but share every tensor, then swap in the replacements."""
    owned: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for path in replaced:  # what is replaced need not be copied at all
        owned.update({id(m): m for m in model.get_submodule(path).modules()})
    body = copy.deepcopy(model, memo=owned)
    for path, module in replaced.items():
        body.set_submodule(path, module)
    return body.eval().requires_grad_(False)


def _layers(program: DecoderProgram) -> tuple[str, ...]:
    return tuple(f"model.model.layers.{i}" for i in range(program.num_layers))


def _dtype(program: DecoderProgram) -> str:
    return str(next(program.model.parameters()).dtype).removeprefix("torch.")


def _state_specs(program: DecoderProgram) -> tuple[TensorSpec, ...]:
    names = [f"{kind}{layer}" for layer in range(program.num_layers) for kind in "kv"]
    dtype = _dtype(program)
    return tuple(TensorSpec(name=n, dtype=dtype, shape=program.cache_shape) for n in names)


def _logit_spec(program: DecoderProgram) -> TensorSpec:
    return TensorSpec(name="logits", dtype=_dtype(program), shape=(1, 1, program.vocab_size))


def _resident(model: nn.Module, phase: Phase) -> Program:
    from mobilekit.models.families.base import Program

    module = ResidentDecoder(model, phase.context_length)
    length = phase.length or 3
    example = (torch.ones(1, length, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    dynamic = None
    if phase.length is None:
        # the full context would make every slice of the mask degenerate; one less is enough
        seq = torch.export.Dim("seq", min=1, max=phase.context_length - 1)
        dynamic = {"tokens": {1: seq}, "input_pos": None}
    shown = phase.length or "seq"
    return Program(
        module=module,
        example_inputs=example,
        dynamic_shapes=dynamic,
        inputs=(
            TensorSpec(name="tokens", dtype="int64", shape=(1, shown)),
            TensorSpec(name="input_pos", dtype="int64", shape=(1,)),
        ),
        outputs=(_logit_spec(module),),
        states=_state_specs(module),
        layers=_layers(module),
    )


def _explicit(model: nn.Module, phase: Phase) -> Program:
    from mobilekit.models.families.base import Program

    module = ExplicitDecoder(model, phase.context_length)
    length, past = 3, 2
    _, heads, _, head_dim = module.cache_shape
    dtype = next(model.parameters()).dtype
    cache = [
        torch.zeros(1, heads, past, head_dim, dtype=dtype) for _ in range(2 * module.num_layers)
    ]
    example = (
        torch.ones(1, length, dtype=torch.long),
        torch.ones(1, past + length, dtype=torch.long),
        torch.arange(past, past + length)[None],
        cache,
    )
    seq = torch.export.Dim("seq", min=1, max=phase.context_length)
    held = torch.export.Dim("past", min=0, max=phase.context_length)
    dynamic = {
        "input_ids": {1: seq},
        "attention_mask": {1: torch.export.Dim.AUTO},  # past + seq, which a Dim cannot say
        "position_ids": {1: seq},
        "past": [{2: held}] * len(cache),
    }
    names = [f"{layer}.{kind}" for layer in range(module.num_layers) for kind in ("key", "value")]
    text = _dtype(module)

    def specs(prefix: str, axis: str) -> tuple[TensorSpec, ...]:
        shape = (1, heads, axis, head_dim)
        return tuple(TensorSpec(name=f"{prefix}.{n}", dtype=text, shape=shape) for n in names)

    return Program(
        module=module,
        example_inputs=example,
        dynamic_shapes=dynamic,
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", shape=(1, "seq")),
            TensorSpec(name="attention_mask", dtype="int64", shape=(1, "total")),
            TensorSpec(name="position_ids", dtype="int64", shape=(1, "seq")),
            *specs("past_key_values", "past"),
        ),
        outputs=(_logit_spec(module), *specs("present", "total")),
        layers=_layers(module),
    )


def _arithmetic(model: nn.Module, phase: Phase) -> Program:
    from mobilekit.models.families.base import Program

    module = ArithmeticDecoder(model, phase.context_length)
    length = phase.length or 1
    return Program(
        module=module,
        example_inputs=(
            torch.ones(1, length, dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
        ),
        dynamic_shapes=None,
        inputs=(
            TensorSpec(name="input_ids", dtype="int32", shape=(1, length)),
            TensorSpec(name="input_pos", dtype="int32", shape=(1,)),
        ),
        outputs=(_logit_spec(module),),
        states=_state_specs(module),
        layers=_layers(module),
    )
