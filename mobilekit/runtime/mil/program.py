"""A MIL function resolved once into a list of numpy calls, then run as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobilekit.core.errors import NotExecutableError

from . import arithmetic, convolution, layout, reductions
from .layout import Array


class UnsupportedMilOp(NotExecutableError):  # noqa: N818 - it names what is not supported
    """An operation, or a control-flow block, that the evaluator has no function for."""


@dataclass
class _Step:
    """One operation, its constants bound: ``outputs = call(**constants, **values of dynamic)``."""

    call: Callable[..., Any]
    constants: dict[str, Any]
    dynamic: list[tuple[str, int | list[int]]]
    outputs: list[tuple[int, np.dtype[Any]]]
    wide: bool  # fp16 is computed in fp32, and the result rounded once
    kind: str  # "call", or the name of a state operation
    state: str = ""
    dead: tuple[int, ...] = ()  # slots that nothing reads any more


class MilFunction:
    """One function of a MIL program, ready to run.

    Args:
        function: A pymil function, as ``milproto.load`` gives it.

    Attributes:
        inputs: Shape of each input by name.
        names: Slot of each value that can be tapped, by its name in the program.

    Raises:
        UnsupportedMilOp: If an operation is not in the table.
    """

    def __init__(self, function: Any) -> None:
        resolved = _Resolver(function)
        self.inputs = resolved.inputs
        self.names = resolved.names
        self._states = resolved.states
        self._steps = resolved.steps
        self._initial: list[Any] = [None] * len(resolved.slots)
        for slot, value in resolved.preset.items():
            self._initial[slot] = value
        self._results = {var.name: resolved.slot(var) for var in function.outputs}
        _free_after_last_use(self._steps, {*resolved.preset, *self._results.values()})

    def zero_states(self) -> dict[str, Array]:
        """Return a fresh set of states, fp16 zeros as the format defines them."""
        return {name: np.zeros(shape, np.float16) for name, shape in self._states.items()}

    def __call__(
        self, feeds: Mapping[str, Array], states: dict[str, Array], taps: Sequence[str] = ()
    ) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: Every input by name.
            states: Entries are replaced by what the program writes.
            taps: Names of intermediate values to return besides.

        Returns:
            Outputs, and tapped values, by name.
        """
        values = list(self._initial)
        for name in self.inputs:
            values[self.names[name]] = feeds[name]
        wanted = {self.names[name]: name for name in taps}
        results: dict[str, Array] = {}
        for step in self._steps:
            _run(step, values, states)
            if wanted:
                written = [slot for slot, _ in step.outputs if slot in wanted]
                results.update({wanted[slot]: values[slot] for slot in written})
            for slot in step.dead:
                values[slot] = None
        return results | {name: values[slot] for name, slot in self._results.items()}


def _run(step: _Step, values: list[Any], states: dict[str, Array]) -> None:
    if step.kind == "read_state":
        values[step.outputs[0][0]] = states[step.state]
        return
    arguments = dict(step.constants)
    for name, slot in step.dynamic:
        if isinstance(slot, int):
            arguments[name] = _widened(values[slot]) if step.wide else values[slot]
        else:
            arguments[name] = [_widened(values[s]) if step.wide else values[s] for s in slot]
    result = step.call(**arguments)
    several = result if isinstance(result, list) else [result]
    for (slot, dtype), value in zip(step.outputs, several, strict=True):
        values[slot] = np.asarray(value).astype(dtype, copy=False)
    if step.kind == "coreml_update_state":
        states[step.state] = values[step.outputs[0][0]]


def _widened(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value


@dataclass
class _Resolver:
    """Turns the operations of a function into steps; constants are worked out on the way."""

    function: Any
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    slots: dict[Any, int] = field(default_factory=dict)  # by pymil variable
    names: dict[str, int] = field(default_factory=dict)
    preset: dict[int, Any] = field(default_factory=dict)  # constants that need a slot
    steps: list[_Step] = field(default_factory=list)
    known: dict[Any, Any] = field(default_factory=dict)  # decompressed constants, by variable
    wide: dict[Any, Array] = field(default_factory=dict)  # fp16 constants in fp32, by variable

    def __post_init__(self) -> None:
        for name, var in self.function.inputs.items():
            if _is_state(var):
                self.states[name] = tuple(var.sym_type.wrapped_type().get_shape())
            else:
                self.inputs[name] = tuple(var.shape)
                self.slot(var)
        for op in _live_operations(self.function):
            if all(self.is_constant(var) for var in op.outputs):
                continue
            if op.op_type.startswith("constexpr_"):
                self.decompress(op)
            else:
                self.steps.append(self.step(op))

    def step(self, op: Any) -> _Step:
        """Return the step of one operation."""
        call, wide = _lookup(op)
        step = _Step(call, {}, [], [], wide, "call")
        for name, given in op.inputs.items():
            if isinstance(given, list | tuple):
                step.dynamic.append((name, [self.slot(var) for var in given]))
            elif given is not None and _is_state(given):
                step.kind, step.state = op.op_type, given.name
            elif given is not None and self.is_constant(given):
                step.constants[name] = self.constant(given, wide)
            elif given is not None:
                step.dynamic.append((name, self.slot(given)))
        step.outputs = [(self.slot(var), _dtype(var)) for var in op.outputs]
        return step

    def decompress(self, op: Any) -> None:
        """Work out the value of a compressed constant, once."""
        call, wide = _lookup(op)
        given = {n: self.constant(v, wide) for n, v in op.inputs.items() if v is not None}
        (var,) = op.outputs
        self.known[var] = np.asarray(call(**given)).astype(_dtype(var))

    def slot(self, var: Any) -> int:
        """Return the place of a value while the function runs."""
        if var not in self.slots:
            self.slots[var] = self.names[var.name] = len(self.slots)
            if self.is_constant(var):
                self.preset[self.slots[var]] = np.asarray(self.constant(var, wide=False))
        return self.slots[var]

    def is_constant(self, var: Any) -> bool:
        """Tell whether a value is known before the function runs."""
        return var in self.known or (not _is_state(var) and var.val is not None)

    def constant(self, var: Any, wide: bool) -> Any:
        """Return a constant; an fp16 weight of a computing step is widened once, not each time."""
        value = self.known.get(var, var.val)
        if isinstance(value, np.bool_ | np.integer):
            return value.item()
        if not wide or getattr(value, "dtype", None) != np.float16:
            return value
        return self.wide.setdefault(var, value.astype(np.float32))


def _lookup(op: Any) -> tuple[Callable[..., Any], bool]:
    """Return the function of an operation, and whether fp16 is to be widened for it."""
    if op.op_type == "read_state":
        return layout.identity, False
    if op.op_type == "coreml_update_state":
        return lambda value: value, False
    if op.op_type in layout.OPS:
        return layout.OPS[op.op_type], False
    for table in (arithmetic.OPS, reductions.OPS, convolution.OPS):
        if op.op_type in table:
            return table[op.op_type], True
    raise UnsupportedMilOp(
        f"MIL operation '{op.op_type}' ({op.name}) is not one that the evaluator knows",
        hint="Run the package on macOS, or add the operation to mobilekit/runtime/mil.",
    )


def _live_operations(function: Any) -> list[Any]:
    """Return the operations that an output or a state depends on, in order."""
    needed = set(function.outputs)
    live = []
    for op in reversed(list(function.operations)):
        if op.op_type == "coreml_update_state" or any(var in needed for var in op.outputs):
            live.append(op)
            for given in op.inputs.values():
                needed.update(given if isinstance(given, list | tuple) else [given])
    return live[::-1]


def _free_after_last_use(steps: list[_Step], kept: set[int]) -> None:
    """Note in each step which slots nothing after it reads."""
    seen = set(kept)
    for step in reversed(steps):
        used = {slot for slot, _ in step.outputs}
        for _, slot in step.dynamic:
            used.update([slot] if isinstance(slot, int) else slot)
        step.dead = tuple(used - seen)
        seen |= used


def _is_state(var: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_state(var.sym_type))


def _dtype(var: Any) -> np.dtype[Any]:
    from coremltools.converters.mil.mil import types

    dtype: np.dtype[Any] = np.dtype(types.nptype_from_builtin(var.dtype))
    return dtype
