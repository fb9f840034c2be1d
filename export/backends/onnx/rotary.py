"""Rotary positions inside the attention operator, where the model's rotation is the common one.

A model computes cos and sin from positions and rotates queries and keys by a function of its own
module. At capture the rows come from tables instead, and where the function proves to be the common
rotation of two halves, it hands queries and keys through: ``GroupQueryAttention`` rotates them by
the same tables. Any other rotation stays in the graph as plain operators.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_FUNCTION = "apply_rotary_pos_emb"
_KERNEL_MULTIPLE = 8  # of half the rotated dimensions; the kernel refuses others


@dataclass(frozen=True)
class RotaryTables:
    """cos and sin of every position, (T, R / 2) each, for R rotated dimensions a head."""

    cos: Tensor
    sin: Tensor


class TableRotary(nn.Module):
    """Returns what the model's rotary module does, looked up in tables of T positions.

    Args:
        inner: The model's module, ``(hidden, position_ids[, layer_type]) -> (cos, sin)``.
        layer_types: Values of its third argument; empty where it takes none.
        length: Positions, T.
    """

    def __init__(self, inner: nn.Module, layer_types: tuple[str, ...], length: int) -> None:
        super().__init__()
        self._keys = {key: i for i, key in enumerate(layer_types or (None,))}
        self.made: list[tuple[Tensor, RotaryTables]] = []
        positions, probe = torch.arange(length)[None], torch.zeros(1, 1, 1)
        for key, index in self._keys.items():
            rows = inner(probe, positions, *([] if key is None else [key]))
            for name, table in zip(("cos", "sin"), rows, strict=True):
                half = table[0, :, : table.shape[-1] // 2].float().contiguous()
                if not torch.equal(torch.cat((half, half), dim=-1), table[0].float()):
                    raise ValueError("not a rotation of two halves")
                self.register_buffer(f"{name}{index}", half)

    def forward(
        self, _hidden: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return cos and sin, (1, S, R) each; ``made`` remembers which tables they came from."""
        index = self._keys[layer_type]
        tables = RotaryTables(getattr(self, f"cos{index}"), getattr(self, f"sin{index}"))
        halves = (tables.cos[position_ids], tables.sin[position_ids])
        cos, sin = (torch.cat((half, half), dim=-1) for half in halves)
        self.made.append((cos, tables))
        return cos, sin


class Rotation:
    """Takes the rotations out of a program's private copy, for the attention operator to do.

    Args:
        model: The copy; its rotary modules are replaced.
        length: Positions that the cache holds.
    """

    def __init__(self, model: Any, length: int) -> None:
        kinds = tuple(sorted(set(getattr(model.config, "layer_types", None) or ())))
        self._rotaries: list[TableRotary] = []
        self._pending: RotaryTables | None = None
        self._modules = {sys.modules[type(m).__module__] for m in model.modules()}
        for path, module in list(model.named_modules()):
            if not path.endswith("rotary_emb"):
                continue
            takes_kind = "layer_type" in inspect.signature(module.forward).parameters
            with contextlib.suppress(ValueError):
                made = TableRotary(module, kinds if takes_kind else (), length)
                model.set_submodule(path, made)
                self._rotaries.append(made)

    @contextlib.contextmanager
    def taken_out(self) -> Iterator[None]:
        """Hand queries and keys through the model's rotation function while inside."""
        found = [(m, getattr(m, _FUNCTION)) for m in self._modules if hasattr(m, _FUNCTION)]
        for module, original in found:
            if self._rotaries and _rotates_halves(original):
                setattr(module, _FUNCTION, self._deferred(original))
        try:
            yield
        finally:
            for module, original in found:
                setattr(module, _FUNCTION, original)
            for rotary in self._rotaries:
                rotary.made.clear()

    def take(self) -> RotaryTables | None:
        """Return the tables that the next attention must rotate by, once."""
        pending, self._pending = self._pending, None
        return pending

    def _deferred(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Any:
            tables = self._tables_of(cos)
            if tables is None or options or tables.cos.shape[1] % _KERNEL_MULTIPLE:
                return original(q, k, cos, sin, **options)
            self._pending = tables
            return q, k

        return rotate

    def _tables_of(self, cos: Tensor) -> RotaryTables | None:
        made = (entry for rotary in self._rotaries for entry in rotary.made)
        return next((tables for known, tables in made if known is cos), None)


def _rotates_halves(function: Callable[..., Any]) -> bool:
    """Whether ``function(q, k, cos, sin)`` is x·cos + (-x₂, x₁)·sin on the leading dimensions."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 3, 16, generator=generator) for _ in range(2))
    for rotated in (16, 8):
        half = torch.randn(2, 1, 3, rotated // 2, generator=generator)
        cos, sin = torch.cat((half, half), dim=-1)
        try:
            found = function(q, k, cos, sin)
        except (RuntimeError, TypeError):  # a rotation of all dimensions cannot do a part of them
            if rotated == 16:
                return False
            continue
        expected = [_rotate(x, cos[:, None], sin[:, None]) for x in (q, k)]
        if not all(torch.allclose(f, e, atol=1e-5) for f, e in zip(found, expected, strict=True)):
            return False
    return True


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1)
