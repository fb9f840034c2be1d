"""Which operations of a half-precision program must stay in fp32, and why.

fp16 is what a phone's accelerators compute in. These do not survive it:

* rotary angles: position × frequency needs more than 11 bits (position 500 would be off by up to
  a quarter of a radian);
* the router: a top-k choice flips on differences that fp16 rounds away. Where it chooses by
  something else than its weights, it gathers these from the same scores;
* norms and the residual stream that they read: a hidden state passes 65 504 in some models (its
  mean square in most), and a sum over dozens of layers would be rounded at each. They are a few
  elementwise operations between linears, so that linears still compute in fp16;
* soft caps: near ±1, a tanh has 11 bits to tell logits apart;
* decays of a state space: exp(dt · A) near 1 rounds to 1, which never forgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_EXACT = ("cos", "sin", "gather_along_axis", "reduce_mean", "rsqrt", "topk")
_DECAYS = ("exp", "softplus")
# what costs next to nothing in fp32; a linear or matmul does not become fp32 for what reads it
_ELEMENTWISE = frozenset(
    ("abs", "add", "cast", "clip", "expand_dims", "identity", "mul", "pow", "real_div", "reshape")
    + ("select", "sqrt", "square", "squeeze", "sub", "tile", "transpose", *_DECAYS)
)


class KeepFp32:
    """Selector for coremltools' fp16 pass: true for the operations that become fp16."""

    def __init__(self) -> None:
        # the pass edits the graph as it walks, so each block is judged once, as first seen; the
        # operations are held so that their ids stay theirs
        self._kept: dict[Any, set[Any]] = {}

    def __call__(self, op: Any) -> bool:
        """Tell whether ``op`` may compute in fp16."""
        block = op.enclosing_block
        if block not in self._kept:
            self._kept[block] = kept_operations(block)
        return op not in self._kept[block]


def kept_operations(block: Any) -> set[Any]:
    """Return the operations of a block that stay in fp32."""
    operations = [op for op in block.operations if op.op_type != "const"]
    exact = {op for op in operations if op.op_type in _EXACT}
    kept = _with_sources(block, operations, exact)
    light = {*kept, *_norms(operations), *_soft_caps(operations), *_decays(operations)}
    return _with_sources(block, operations, light, only=_ELEMENTWISE)


def _with_sources(
    block: Any, operations: list[Any], kept: Iterable[Any], only: frozenset[str] | None = None
) -> set[Any]:
    """Return ``kept`` and, going backwards, the operations that feed nothing else."""
    found = set(kept)
    for op in reversed(operations):
        readers = list(_readers(op))
        if (
            (only is None or op.op_type in only)
            and readers
            and all(reader in found for reader in readers)
            and not any(var in block.outputs for var in op.outputs)
        ):
            found.add(op)
    return found


def _norms(operations: list[Any]) -> Iterator[Any]:
    """Yield what a norm divides, where it is a residual sum, and the division itself.

    A norm is ``x · rsqrt(mean(x²) + ε)``.
    """
    for op in operations:
        if op.op_type != "rsqrt":
            continue
        for division in _readers(op):
            if division.op_type != "mul":
                continue
            yield division
            for var in (division.x, division.y):
                if var.op is not None and var.op.op_type == "add":
                    yield var.op


def _soft_caps(operations: list[Any]) -> Iterator[Any]:
    """Yield each tanh, and the product that brings its range back."""
    for op in operations:
        if op.op_type == "tanh":
            yield op
            yield from (reader for reader in _readers(op) if reader.op_type == "mul")


def _decays(operations: list[Any]) -> set[Any]:
    """Return the decays and what they are multiplied into: the update of the state."""
    found = {op for op in operations if op.op_type in _DECAYS}
    for op in operations:  # in order, so that one walk reaches everything
        makers = {var.op for var in _given(op)}
        follows = any(m in found and m.op_type != "softplus" for m in makers if m is not None)
        if op.op_type in _ELEMENTWISE and follows:
            found.add(op)
    return found


def _readers(op: Any) -> Iterator[Any]:
    return (reader for var in op.outputs for reader in var.child_ops)


def _given(op: Any) -> Iterator[Any]:
    for value in op.inputs.values():
        yield from value if isinstance(value, list | tuple) else [value]
