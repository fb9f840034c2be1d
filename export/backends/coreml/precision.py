"""Which operations of a half-precision program must stay in fp32, and why.

fp16 is what a phone's accelerators compute in. Three things do not survive it:

* rotary angles: position × frequency needs more than 11 bits (position 500 would be off by up to
  a quarter of a radian);
* the statistics of a norm: the mean square of a hidden state overflows at 65 504;
* the router: a top-k choice flips on differences that fp16 rounds away.
"""

from __future__ import annotations

from typing import Any

_ANCHORS = ("cos", "sin", "reduce_mean", "rsqrt", "topk")


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
    """Return the anchors and whatever feeds nothing but kept operations."""
    return _feeding(block, _ANCHORS)


def _feeding(block: Any, anchors: tuple[str, ...]) -> set[Any]:
    """Return the anchors and, going backwards, the operations that feed nothing else."""
    kept: set[Any] = set()
    for op in reversed(list(block.operations)):
        if op.op_type == "const":
            continue
        readers = [child for var in op.outputs for child in var.child_ops]
        only_kept = bool(readers) and all(reader in kept for reader in readers)
        if op.op_type in anchors or (only_kept and not _is_output(op, block)):
            kept.add(op)
    return kept


def _is_output(op: Any, block: Any) -> bool:
    return any(var in block.outputs for var in op.outputs)
