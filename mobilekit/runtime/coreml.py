"""A Core ML package as a runtime: Core ML itself on macOS, the numpy evaluator elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mobilekit.core.errors import InvalidInputError

from .base import Cursor, Logits, Tokens
from .mil import load_functions, load_spec
from .mil.layout import Array
from .mil.tools import coremltools, quiet


class _Engine(Protocol):
    """Runs one function of the package on the states it holds."""

    name: str
    version: str

    def reset(self) -> None:
        """Make all states zero."""

    def run(self, function: str, feeds: dict[str, Array]) -> Array:
        """Return the output "logits"."""


class CoreMLRuntime:
    """Interface ``token-logits/1`` over a stateful multifunction ``.mlpackage``.

    A prompt is fed in chunks of the prefill function's length, its remainder token by token; a
    program with a running state has no such function.

    Args:
        path: The ``.mlpackage`` directory.
        context_length: Positions that its states hold.
        vocab_size: V.
        threads: Accepted so that all runtimes are made alike; Core ML takes no thread count, and
            numpy's is set by the environment.

    Raises:
        InvalidInputError: If the package is damaged or has another interface.
        UnsupportedMilOp: If it has to be evaluated and has an operation that cannot be.
        MissingDependencyError: If coremltools is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        context_length: int,
        vocab_size: int,
        threads: int | None = None,
    ) -> None:
        lengths = _chunk_lengths(path)
        self.context_length = context_length
        self.vocab_size = vocab_size
        self._chunk = lengths.get("prefill")
        is_mac = sys.platform == "darwin"
        self._engine: _Engine = _CoreML(path, lengths) if is_mac else _Evaluator(path)
        self.name, self.version = self._engine.name, self._engine.version
        self.cursor = Cursor(
            vocab_size=vocab_size,
            context_length=context_length,
            is_recurrent=_is_recurrent(path),
            chunk=self._chunk,
        )

    def reset(self) -> None:
        """Forget everything."""
        self._engine.reset()
        self.cursor.reset()

    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32."""
        logits = None
        with self.cursor.call(tokens, position):
            for function, start, stop in chunks(len(tokens), self._chunk):
                feeds = {
                    "input_ids": np.asarray(tokens[start:stop], dtype=np.int32)[None],
                    "input_pos": np.asarray([position + start], dtype=np.int32),
                }
                logits = self._engine.run(function, feeds)
        return np.asarray(logits, dtype=np.float32).reshape(-1)


def chunks(count: int, length: int | None) -> list[tuple[str, int, int]]:
    """Return (function, start, stop) of the calls that feed ``count`` tokens."""
    whole = 0 if length is None else count // length * length
    prefill = [("prefill", i, i + length) for i in range(0, whole, length)] if length else []
    return [*prefill, *(("decode", i, i + 1) for i in range(whole, count))]


class _Evaluator:
    """The numpy evaluator of the saved program; its results are checks, never measurements."""

    name = "mil-numpy"

    def __init__(self, path: Path) -> None:
        self.version = str(np.__version__)
        self.functions = load_functions(path)
        self.reset()

    def reset(self) -> None:
        self._states = self.functions["decode"].zero_states()

    def run(self, function: str, feeds: dict[str, Array]) -> Array:
        return self.functions[function](feeds, self._states)["logits"]


class _CoreML:
    """Core ML's own runtime; one state serves both functions."""

    name = "coreml"

    def __init__(self, path: Path, lengths: dict[str, int]) -> None:
        import platform

        ct = coremltools()
        self.version = platform.mac_ver()[0]
        with quiet():
            self._models: dict[str, Any] = {
                name: ct.models.MLModel(str(path), function_name=name) for name in lengths
            }
        self.reset()

    def reset(self) -> None:
        self._state = self._models["decode"].make_state()

    def run(self, function: str, feeds: dict[str, Array]) -> Array:
        return np.asarray(self._models[function].predict(feeds, state=self._state)["logits"])


def _is_recurrent(path: Path) -> bool:
    """Tell whether the package keeps the running state of a state-space model."""
    functions = load_spec(path).description.functions
    return any(item.name.startswith("ssm") for f in functions for item in f.state)


def _chunk_lengths(path: Path) -> dict[str, int]:
    """Return the number of tokens that each function takes, checking the interface."""
    lengths = {}
    for function in load_spec(path).description.functions:
        shapes = {item.name: list(item.type.multiArrayType.shape) for item in function.input}
        outputs = [item.name for item in function.output]
        if set(shapes) == {"input_ids", "input_pos"} and outputs == ["logits"]:
            lengths[function.name] = int(shapes["input_ids"][-1])
    if lengths.get("decode") != 1:
        raise InvalidInputError(
            f"{path} has no function 'decode' that takes input_ids, input_pos and gives logits",
            hint="Give a package that `mobilekit export` wrote.",
        )
    return lengths
