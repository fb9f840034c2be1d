"""A decoder-only language model as a program: prefill and decode with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mobilekit.schema.manifest import TensorSpec

from .attention import choose_attention_
from .copies import shallow_copy
from .decoders import ArithmeticDecoder, DecoderProgram, ExplicitDecoder, ResidentDecoder
from .rotary import prepare_rotary_
from .scaled_embedding import ScaledEmbedding

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
        UnsupportedModelError: If a layer attends in a way that no mask of ours describes.
        UsageError: If the model's positions do not hold for the context length.
    """
    from mobilekit.models.families.base import StateForm

    body: Any = shallow_copy(model, replaced)
    _prepare_(body, phase.context_length)
    build: dict[StateForm | None, Callable[[nn.Module, Phase], Program]] = {
        StateForm.RESIDENT: _resident,
        StateForm.EXPLICIT: _explicit,
        StateForm.ARITHMETIC: _arithmetic,
    }
    return build[phase.state](body, phase)


def _prepare_(body: Any, context_length: int) -> None:
    """Put into a private copy what captures and quantizes as it must."""
    choose_attention_(body)
    prepare_rotary_(body.model, context_length)
    if hasattr(body.model.embed_tokens, "scalar_embed_scale"):
        body.model.embed_tokens = ScaledEmbedding(body.model.embed_tokens)


def _layers(program: DecoderProgram) -> tuple[str, ...]:
    return tuple(f"model.model.layers.{i}" for i in program.layer_indices)


def _dtype(program: DecoderProgram) -> str:
    return str(next(program.model.parameters()).dtype).removeprefix("torch.")


def _state_specs(program: DecoderProgram) -> tuple[TensorSpec, ...]:
    dtype = _dtype(program)
    return tuple(
        TensorSpec(name=f"{kind}{layer}", dtype=dtype, shape=shape)
        for layer, shape in enumerate(program.cache_shapes)
        for kind in "kv"
    )


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
    dtype = next(model.parameters()).dtype
    cache = [
        torch.zeros(1, heads, past, head_dim, dtype=dtype)
        for _, heads, _, head_dim in module.cache_shapes
        for _ in "kv"
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
    text = _dtype(module)

    def specs(prefix: str, axis: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=f"{prefix}.{layer}.{kind}", dtype=text, shape=(1, heads, axis, head_dim)
            )
            for layer, (_, heads, _, head_dim) in enumerate(module.cache_shapes)
            for kind in ("key", "value")
        )

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
