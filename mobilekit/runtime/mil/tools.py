"""coremltools, imported and used without its noise.

On import it reports every Apple library that is absent on Linux and every version that it was not
tested with; while converting it draws progress bars. None of that is for the user of the command
line, and real trouble arrives as exceptions.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from mobilekit.core.optional import require

_LOGGERS = ("coremltools", "torchao", "torch.utils._pytree")
# where coremltools keeps a reference to tqdm, on the path from torch.export to a package
_BARS = (
    ("coremltools.converters.mil.frontend.torch.ops", "_tqdm"),
    ("coremltools.converters.mil.mil.passes.pass_pipeline", "tqdm"),
    ("coremltools.optimize.coreml._quantization_passes", "tqdm"),
)


def coremltools() -> ModuleType:
    """Return the ``coremltools`` module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    with _hushed():
        return require("coremltools", extra="coreml")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run a block without coremltools' warnings and progress bars; errors still raise."""
    coremltools()
    with _hushed(), contextlib.ExitStack() as stack:
        for module, name in _BARS:
            stack.enter_context(_replaced(importlib.import_module(module), name, _no_bar))
        yield


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _no_bar(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    return iterable
