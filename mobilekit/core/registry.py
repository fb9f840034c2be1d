"""One table of names, each bound to a lazy ``"module:Name"`` string.

Register with ``registry.register("aimer", "mobilekit.compress.aimer.method:Aimer")``, look up
with ``registry.get("aimer")``, list with ``registry.names()``. The module behind a name is
imported at the first look-up, so that listing names costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Generic, TypeVar, cast

from .errors import UsageError
from .suggest import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing, resolved on first use.

    Args:
        kind: What the names stand for, used in messages ("method", "target").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._loaded: dict[str, T] = {}

    def register(self, name: str, target: str) -> None:
        """Bind ``name`` to ``"module:Name"``.

        Raises:
            ValueError: If the name is bound to another target, or the target has no colon.
        """
        if ":" not in target:
            raise ValueError(f"{self.kind} '{name}': target '{target}' is not 'module:Name'")
        if self._targets.get(name, target) != target:
            raise ValueError(f"{self.kind} '{name}' is already bound to {self._targets[name]}")
        self._targets[name] = target

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._targets)

    def get(self, name: str) -> T:
        """Return the object behind ``name``.

        Raises:
            UsageError: If the name is unknown; the message lists what there is.
        """
        if name not in self._targets:
            raise UsageError(
                f"unknown {self.kind} '{name}'{did_you_mean(name, self._targets)}",
                hint=f"Known {self.kind}s: {', '.join(self.names())}.",
            )
        if name not in self._loaded:
            module, _, attribute = self._targets[name].partition(":")
            self._loaded[name] = cast(T, getattr(importlib.import_module(module), attribute))
        return self._loaded[name]
