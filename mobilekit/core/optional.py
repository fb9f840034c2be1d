"""Optional packages: imported where they are used, missing ones named with the install line."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from .errors import MissingDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of MobileKit brings it.

    Raises:
        MissingDependencyError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing != module.split(".")[0]:
            raise
        raise MissingDependencyError(
            f"package '{missing}' is not installed, but {extra} needs it",
            hint=f"Install it with: pip install 'mobilekit[{extra}]'",
        ) from error


def require_distribution(name: str, *, extra: str) -> str:
    """Return the version of an installed distribution, without importing it.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(
            f"package '{name}' is not installed, but {extra} needs it",
            hint=f"Install it with: pip install 'mobilekit[{extra}]'",
        ) from None
