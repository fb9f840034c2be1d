"""Which precision each layer is stored at: one for all, and exceptions by pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mobilekit.core.errors import UsageError
from mobilekit.core.suggest import did_you_mean
from mobilekit.schema.manifest import LayerPrecision

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.models.families import Program

QUANTIZED = ("int8", "int4")


@dataclass(frozen=True)
class Precision:
    """The precision of an artifact, layer by layer.

    Attributes:
        name: "fp32", "fp16", "int8" or "int4": what a layer gets by default.
        overrides: (pattern, precision) pairs; a shell-style pattern over a layer's path in the
            checkpoint ("lm_head", "model.layers.0.*"), and "float", "int8" or "int4". The first
            that matches wins. They refine quantized artifacts only.
    """

    name: str
    overrides: tuple[tuple[str, LayerPrecision], ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Whether weights are stored in fewer than 16 bits."""
        return self.name in QUANTIZED

    @property
    def is_mixed(self) -> bool:
        """Whether some layers may be at another precision than the rest."""
        return self.is_quantized and bool(self.overrides)

    def at(self, path: str) -> LayerPrecision:
        """Return the precision of the layer at ``path``."""
        if not self.is_quantized:
            return "float"
        for pattern, precision in self.overrides:
            if fnmatchcase(path, pattern):
                return precision
        return "int8" if self.name == "int8" else "int4"


def weight_layers(program: Program) -> dict[str, nn.Linear | nn.Embedding]:
    """Return the layers whose weights a quantized artifact stores in few bits, by path.

    These are the linears and embeddings, except routers: they are tiny, and a rounded score sends
    a token to another expert. A path is the layer's in the checkpoint; a StaticMoE has
    ``gate_up`` and ``down`` in place of its experts.
    """
    from torch import nn

    from mobilekit.models.modules.routing import router_parts

    routers = router_parts(program.module)
    return {
        checkpoint_path(path): module
        for path, module in program.module.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and id(module) not in routers
    }


def checkpoint_path(path: str) -> str:
    """Return the path in the checkpoint of a program's submodule; the program wraps the model."""
    return path.removeprefix("model.")


def check_overrides(overrides: Mapping[str, str], paths: Iterable[str]) -> None:
    """Refuse a pattern that matches no layer: it would be a typo that does nothing.

    Raises:
        UsageError: With the pattern, and the layers' names.
    """
    paths = sorted(paths)
    for pattern in overrides:
        if not any(fnmatchcase(path, pattern) for path in paths):
            names = sorted({path.rpartition(".")[2] for path in paths})
            raise UsageError(
                f"override '{pattern}' matches no layer of the model{did_you_mean(pattern, paths)}",
                hint=f"Patterns match whole paths, such as '*.{names[0]}'; "
                f"layers are called {', '.join(names)}.",
            )
