"""Optimal brain surgeon for structures: which input columns of a linear layer go, and what repairs.

Shared by every method that removes columns by second-order information::

    moments = SecondMoments(columns)
    moments.add(inputs)                                    # (..., columns), as often as wanted
    removal = remove_units(weight, moments.matrix(), width=64, removed=[0, 2, 4, 8])
"""

from __future__ import annotations

from .hessian import SecondMoments, damped, inverse
from .removal import Level, Removal, Selection, remove_units
from .unrepaired import remove_by_score

__all__ = [
    "Level",
    "Removal",
    "SecondMoments",
    "Selection",
    "damped",
    "inverse",
    "remove_by_score",
    "remove_units",
]
