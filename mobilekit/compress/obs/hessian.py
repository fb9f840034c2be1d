"""The second-order matrix of a linear layer: H = 2/N · Σ x xᵀ over its inputs, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError

WIDE = 4096  # columns up to which sums and inverses are float64; beyond, their memory decides
_RETRIES = 3  # of a Cholesky factorisation, each with ten times the damping


def working_dtype(columns: int) -> torch.dtype:
    """Return the dtype that matrices of so many columns are worked on in."""
    return torch.float64 if columns <= WIDE else torch.float32


class SecondMoments:
    """Running sum of x xᵀ over the inputs x of a layer.

    Args:
        columns: Input features of the layer, d.
        device: Where the sum is kept.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.columns = columns
        self.samples = 0
        self._sum = torch.zeros(columns, columns, dtype=working_dtype(columns), device=device)

    def add(self, inputs: Tensor) -> None:
        """Add inputs of any float dtype, shape (..., d); each is one sample.

        Raises:
            InvalidInputError: If one is NaN or infinite.
        """
        rows = inputs.detach().reshape(-1, self.columns).to(self._sum.device, torch.float32)
        if not bool(rows.isfinite().all()):
            raise InvalidInputError(
                "calibration gives activations that are NaN or infinite",
                hint="Load the model in float32 or bfloat16, or look for bad values in its "
                "weights.",
            )
        self._sum += (rows.T @ rows).to(self._sum.dtype)
        self.samples += rows.shape[0]

    def matrix(self) -> Tensor:
        """Return H, shape (d, d), float64 up to 4096 columns, float32 beyond.

        Raises:
            InvalidInputError: If fewer samples were added than there are columns.
        """
        if self.samples < self.columns:
            raise InvalidInputError(
                f"{self.samples} calibration tokens cannot tell {self.columns} columns apart",
                hint=f"Use at least {self.columns} tokens, better {10 * self.columns}.",
            )
        return self._sum * (2.0 / self.samples)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """Return H + damping · mean(diag H) · I, with 1 on the diagonal of inputs that are always 0."""
    result = hessian.clone()
    diagonal = result.diagonal()
    dead = diagonal == 0
    diagonal += damping * diagonal.mean()
    diagonal[dead] = 1.0
    return result


def inverse(hessian: Tensor, damping: float, name: str) -> tuple[Tensor, Tensor]:
    """Return the damped H and its inverse, by Cholesky.

    Where H is not positive definite in floating point, the damping is raised tenfold, up to three
    times, with a warning.

    Args:
        hessian: H, shape (d, d).
        damping: Share of the mean diagonal that is added to the diagonal.
        name: What the layer is called in messages.

    Raises:
        InvalidInputError: If it is singular all the same.
    """
    for attempt in range(_RETRIES + 1):
        raised = damping * 10**attempt
        matrix = damped(hessian, raised)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed) and bool(factor.isfinite().all()):
            if attempt:
                console.warn(f"{name}: the damping was raised to {raised:g} to invert its Hessian")
            return matrix, torch.cholesky_inverse(factor)
    raise InvalidInputError(
        f"the Hessian of {name} cannot be inverted, even with a damping of {raised:g}",
        hint="Use more calibration tokens, or a larger damping.",
    )
