"""An ``.onnx`` in ONNX Runtime: numpy and onnxruntime, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.optional import require

from .base import Cursor, Logits, Tokens

_POSITIONS = ("attention_mask", "position_ids")
_CACHE, _RUNNING = "past_key_values.", ("past_conv.", "past_ssm.")


class OnnxRuntime:
    """Interface ``token-logits/1`` over a decoder in onnxruntime-genai's layout.

    The cache is one buffer a layer and kind, of the whole context length, bound as both past and
    present: the attention operator writes the new rows in place and nothing is copied. A running
    state, of a program that takes one token a call, has two buffers that change places.

    Args:
        path: The ``.onnx`` file.
        context_length: Positions that the cache holds, T.
        vocab_size: V.
        threads: Compute threads; ONNX Runtime's own choice where ``None``.

    Raises:
        InvalidInputError: If the file is missing, damaged, or has another interface.
        MissingDependencyError: If onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(
        self, path: Path, *, context_length: int, vocab_size: int, threads: int | None = None
    ) -> None:
        self._ort = require("onnxruntime", extra="onnx")
        self.version: str = self._ort.__version__
        self.context_length, self.vocab_size = context_length, vocab_size
        self._session = self._open(Path(path), threads)
        self._check_interface(Path(path))
        self._ones = np.ones((1, context_length), dtype=np.int64)
        self._slots = np.arange(context_length, dtype=np.int64)[None]
        self._logits = self._buffer((1, 1, vocab_size))
        self._cache: list[Any] = []  # a binding does not keep what is bound alive in every version
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_output("logits", self._logits)
        self._bind_cache()
        self._states = [(s.name, *map(self._buffer, (s.shape, s.shape))) for s in self._running()]
        self.cursor = Cursor(
            vocab_size=vocab_size, context_length=context_length, is_recurrent=bool(self._states)
        )

    def reset(self) -> None:
        """Forget everything: rows of the cache past the position are never read."""
        self.cursor.reset()

    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32."""
        with self.cursor.call(tokens, position):
            ids = np.ascontiguousarray(tokens, dtype=np.int64)[None]
            if self._states:
                self._step(ids, position)
            else:
                self._extend(ids, position)
        # a copy: the next call writes to the same memory
        return self._logits.numpy()[0, -1].copy()  # type: ignore[no-any-return]

    def _extend(self, ids: Tokens, position: int) -> None:
        """Run a program with a key-value cache on all tokens at once."""
        end = position + ids.shape[1]
        self._binding.bind_cpu_input("input_ids", ids)
        self._binding.bind_cpu_input("attention_mask", self._ones[:, :end])
        self._binding.bind_cpu_input("position_ids", self._slots[:, position:end])
        self._session.run_with_iobinding(self._binding)

    def _step(self, ids: Tokens, position: int) -> None:
        """Run a recurrent program token by token, from zeros at position 0."""
        if position == 0:
            for _, held, _ in self._states:
                held.update_inplace(np.zeros(held.shape(), dtype=np.float32))
        for column in range(ids.shape[1]):
            self._binding.bind_cpu_input("input_ids", ids[:, column : column + 1].copy())
            for name, held, fresh in self._states:
                self._binding.bind_ortvalue_input(name, held)
                self._binding.bind_ortvalue_output(_present(name), fresh)
            self._session.run_with_iobinding(self._binding)
            self._states = [(name, fresh, held) for name, held, fresh in self._states]

    def _open(self, path: Path, threads: int | None) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # what it warns of is for graph authors
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            return self._ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base class below this one
            reason = str(error).splitlines()[0][:200]
            raise InvalidInputError(
                f"ONNX Runtime {self.version} cannot open {path}: {reason}",
                hint="Check the file's checksum; if it is whole, export it anew.",
            ) from error

    def _check_interface(self, path: Path) -> None:
        inputs = {i.name for i in self._session.get_inputs()}
        shapes = {o.name: o.shape for o in self._session.get_outputs()}
        past = {name for name in inputs if name.startswith((_CACHE, *_RUNNING))}
        wanted = {"input_ids"} if self._running() else {"input_ids", *_POSITIONS}
        present = {_present(name) for name in past}
        vocab = (shapes.get("logits") or [None])[-1]
        if not past or inputs != wanted | past or set(shapes) != {"logits"} | present:
            raise InvalidInputError(
                f"{path} is not a decoder with inputs input_ids, attention_mask, position_ids, "
                "past_key_values.N.key/value and outputs logits, present.N.key/value, nor one with "
                "past_conv.N, past_ssm.N and present_conv.N, present_ssm.N",
                hint="Open a file that mobilekit exported.",
            )
        if vocab != self.vocab_size:
            raise InvalidInputError(
                f"{path} gives {vocab} logits, but a vocabulary of {self.vocab_size} was expected",
                hint="The file and its manifest do not belong together; export it anew.",
            )

    def _buffer(self, shape: tuple[int, ...]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))

    def _bind_cache(self) -> None:
        """Bind one buffer (1, H, T, Dh) as past and present of each cache."""
        for spec in self._session.get_inputs():
            if spec.name.startswith(_CACHE):
                _, heads, _, head_dim = spec.shape
                buffer = self._buffer((1, heads, self.context_length, head_dim))
                self._cache.append(buffer)
                self._binding.bind_ortvalue_input(spec.name, buffer)
                self._binding.bind_ortvalue_output(_present(spec.name), buffer)

    def _running(self) -> list[Any]:
        """Return the specs of the running states that go in."""
        return [spec for spec in self._session.get_inputs() if spec.name.startswith(_RUNNING)]


def _present(name: str) -> str:
    """Return the name of the output that follows on from the state that goes in as ``name``."""
    if name.startswith(_CACHE):
        return "present." + name.removeprefix(_CACHE)
    return "present_" + name.removeprefix("past_")
