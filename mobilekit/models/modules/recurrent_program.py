"""A Mamba-2 language model as a program: one token a call, a running state instead of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilekit.schema.manifest import TensorSpec

from .cache import cache_argument
from .copies import shallow_copy
from .mamba2 import Mamba2Step, RunningStates

if TYPE_CHECKING:
    from mobilekit.models.families.base import Phase, Program


class RecurrentProgram(nn.Module):
    """Common ground of the forms: the model, its mixers as :class:`Mamba2Step`.

    Captured for one token. Called directly, ``forward`` takes any number and loops over them.

    Args:
        model: A ``Mamba2ForCausalLM`` in eval mode, private to the program.
        context_length: Positions that a host may ask for; the state's size does not depend on it.
    """

    is_recurrent = True  # a running state holds for one position and cannot go back

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.context_length = context_length
        self.vocab_size: int = config.vocab_size
        steps: list[Mamba2Step] = []
        for layer in self._backbone.layers:
            layer.mixer = Mamba2Step(layer.mixer)
            steps.append(layer.mixer)
        self.num_layers = len(steps)
        self.state_shapes = {
            f"{kind}{index}": shape
            for index, step in enumerate(steps)
            for kind, shape in zip(("conv", "ssm"), step.state_shapes, strict=True)
        }

    @property
    def _backbone(self) -> Any:
        return self.model.backbone

    def _step(self, token: Tensor, states: RunningStates) -> Tensor:
        """Return the stream after the last layer for one token (1, 1), shape (1, 1, D)."""
        hidden: Tensor = self._backbone.embeddings(token)
        for layer in self._backbone.layers:
            hidden = layer(hidden, **cache_argument(layer, states))
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        head: Any = self.model.lm_head
        norm = self._backbone.norm_f
        # the stream may be float32 where weights are not (``residual_in_fp32``)
        return head(norm(hidden).to(norm.weight.dtype))  # type: ignore[no-any-return]


class ResidentRecurrent(RecurrentProgram):
    """States in buffers: ``forward(tokens (1, S), input_pos (1,))``; position 0 forgets them."""

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__(model, context_length)
        dtype = next(model.parameters()).dtype
        for name, shape in self.state_shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        kept = (input_pos != 0).to(self._held("ssm")[0].dtype)
        for token in _columns(tokens):
            states = RunningStates(self._held("conv"), self._held("ssm"), kept)
            hidden = self._step(token, states)
            for layer in range(self.num_layers):
                getattr(self, f"conv{layer}").copy_(states.conv[layer])
                getattr(self, f"ssm{layer}").copy_(states.ssm[layer])
            kept = torch.ones_like(kept)
        return self._logits(hidden)

    def reset(self) -> None:
        """Set every state to zero."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def _held(self, kind: str) -> list[Tensor]:
        return [getattr(self, f"{kind}{layer}") for layer in range(self.num_layers)]


class ArithmeticRecurrent(ResidentRecurrent):
    """The same under the names of Core ML's inputs: ``forward(input_ids (1, S), input_pos (1,))``.

    Both int32. It writes whole states, so nothing in it has to be written by index.
    """

    def forward(self, input_ids: Tensor, input_pos: Tensor) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        return super().forward(input_ids, input_pos)


class ExplicitRecurrent(RecurrentProgram):
    """States as inputs and outputs: ``forward(input_ids (1, S), past)``.

    ``past`` is [conv0, ssm0, conv1, …], zeros at the start of a text; returns (logits, the same
    after the tokens).
    """

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the last position's logits, shape (1, 1, V), and the new states."""
        states = RunningStates(past[0::2], past[1::2], torch.ones_like(past[0][:, 0, 0]))
        for token in _columns(input_ids):
            hidden = self._step(token, states)
        pairs = zip(states.conv, states.ssm, strict=True)
        return self._logits(hidden), [state for pair in pairs for state in pair]


def _columns(tokens: Tensor) -> tuple[Tensor, ...]:
    return (tokens,) if tokens.shape[1] == 1 else tokens.chunk(tokens.shape[1], dim=1)


def recurrent_program(model: nn.Module, phase: Phase) -> Program:
    """Wrap a Mamba-2 LM for capture, whatever length is asked for: one token a call.

    Args:
        model: The model; left as it is.
        phase: Which state form and context length.

    Returns:
        The program; its weights are shared with ``model``.
    """
    from mobilekit.models.families.base import Program, StateForm

    body = shallow_copy(model)
    dtype = str(next(body.parameters()).dtype).removeprefix("torch.")
    if phase.state is StateForm.EXPLICIT:
        return _explicit(ExplicitRecurrent(body, phase.context_length), dtype)
    is_resident = phase.state is StateForm.RESIDENT
    build = ResidentRecurrent if is_resident else ArithmeticRecurrent
    module = build(body, phase.context_length)
    integer = torch.int64 if is_resident else torch.int32
    text = str(integer).removeprefix("torch.")
    return Program(
        module=module,
        example_inputs=(torch.ones(1, 1, dtype=integer), torch.ones(1, dtype=integer)),
        dynamic_shapes=None,
        inputs=(
            TensorSpec(name="tokens" if is_resident else "input_ids", dtype=text, shape=(1, 1)),
            TensorSpec(name="input_pos", dtype=text, shape=(1,)),
        ),
        outputs=(_logit_spec(module, dtype),),
        states=_state_specs(module, dtype, "{kind}{layer}"),
        layers=_layers(module),
        is_recurrent=True,
    )


def _explicit(module: ExplicitRecurrent, dtype: str) -> Program:
    from mobilekit.models.families.base import Program

    shapes = module.state_shapes.values()
    past = [torch.zeros(shape, dtype=next(module.parameters()).dtype) for shape in shapes]
    return Program(
        module=module,
        example_inputs=(torch.ones(1, 1, dtype=torch.int64), past),
        dynamic_shapes=None,
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", shape=(1, 1)),
            *_state_specs(module, dtype, "past_{kind}.{layer}"),
        ),
        outputs=(
            _logit_spec(module, dtype),
            *_state_specs(module, dtype, "present_{kind}.{layer}"),
        ),
        layers=_layers(module),
        is_recurrent=True,
    )


def _state_specs(module: RecurrentProgram, dtype: str, pattern: str) -> tuple[TensorSpec, ...]:
    names = [
        pattern.format(kind=kind, layer=layer)
        for layer in range(module.num_layers)
        for kind in ("conv", "ssm")
    ]
    shapes = module.state_shapes.values()
    return tuple(
        TensorSpec(name=name, dtype=dtype, shape=shape)
        for name, shape in zip(names, shapes, strict=True)
    )


def _logit_spec(module: RecurrentProgram, dtype: str) -> TensorSpec:
    return TensorSpec(name="logits", dtype=dtype, shape=(1, 1, module.vocab_size))


def _layers(module: RecurrentProgram) -> tuple[str, ...]:
    return tuple(f"model.backbone.layers.{index}" for index in range(module.num_layers))
