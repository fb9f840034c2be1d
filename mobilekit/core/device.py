"""Where tensors live and in which type: ``auto`` or a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import MissingDependencyError, UsageError
from .suggest import did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for ``name``; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: If torch does not know the name.
        MissingDependencyError: If the device is not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"unknown device '{name}'", hint="Use auto, cpu, cuda or cuda:N."
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            f"device '{name}' was asked for, but this machine has no usable GPU",
            hint="Use device auto or cpu.",
        )
    return device


def choose_dtype(name: str = "auto") -> torch.dtype | None:
    """Return the dtype for ``name``; ``None`` stands for the checkpoint's own.

    Raises:
        UsageError: If the name is not one of ``DTYPES``.
    """
    import torch

    if name not in DTYPES:
        raise UsageError(
            f"unknown dtype '{name}'{did_you_mean(name, DTYPES)}",
            hint=f"Use one of: {', '.join(DTYPES)}.",
        )
    dtype: torch.dtype | None = None if name == "auto" else getattr(torch, name)
    return dtype
