"""An ``.onnx`` in ONNX Runtime: numpy and onnxruntime, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.optional import require

from .base import Logits, Tokens, check_span

_PAST, _PRESENT = "past_key_values.", "present."


class OnnxRuntime:
    """Interface ``token-logits/1`` over a decoder in onnxruntime-genai's layout.

    The cache is one buffer a layer and kind, of the whole context length, bound as both past and
    present: the attention operator writes the new rows in place and nothing is copied.

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
        self._binding = self._bind_buffers()
        self.reset()

    def reset(self) -> None:
        """Forget everything: rows of the cache past the position are never read."""
        self._held = 0

    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32.

        Raises:
            UsageError: If the tokens do not fit, or leave a gap after what the cache holds.
        """
        count = len(tokens)
        check_span(count, position, self.context_length)
        if position > self._held:
            raise UsageError(
                f"position {position} was given, but the cache holds {self._held} tokens",
                hint="Give the tokens in order, from position 0 after a reset.",
            )
        end = position + count
        ids = np.ascontiguousarray(tokens, dtype=np.int64)[None]
        self._binding.bind_cpu_input("input_ids", ids)
        self._binding.bind_cpu_input("attention_mask", self._ones[:, :end])
        self._binding.bind_cpu_input("position_ids", self._slots[:, position:end])
        self._session.run_with_iobinding(self._binding)
        self._held = end
        # a copy: the next call writes to the same memory
        return self._logits.numpy()[0, -1].copy()  # type: ignore[no-any-return]

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
        wanted = {"input_ids", "attention_mask", "position_ids"}
        past = {name for name in inputs if name.startswith(_PAST)}
        present = {_PRESENT + name.removeprefix(_PAST) for name in past}
        vocab = (shapes.get("logits") or [None])[-1]
        if not past or inputs != wanted | past or set(shapes) != {"logits"} | present:
            raise InvalidInputError(
                f"{path} is not a decoder with inputs input_ids, attention_mask, position_ids, "
                "past_key_values.N.key/value and outputs logits, present.N.key/value",
                hint="Open a file that mobilekit exported.",
            )
        if vocab != self.vocab_size:
            raise InvalidInputError(
                f"{path} gives {vocab} logits, but a vocabulary of {self.vocab_size} was expected",
                hint="The file and its manifest do not belong together; export it anew.",
            )

    def _buffer(self, shape: tuple[int, ...]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))

    def _bind_buffers(self) -> Any:
        """Bind the logits, and one buffer (1, H, T, Dh) as past and present of each state."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_output("logits", self._logits)
        for spec in self._session.get_inputs():
            if spec.name.startswith(_PAST):
                _, heads, _, head_dim = spec.shape
                buffer = self._buffer((1, heads, self.context_length, head_dim))
                self._cache.append(buffer)
                binding.bind_ortvalue_input(spec.name, buffer)
                present = _PRESENT + spec.name.removeprefix(_PAST)
                binding.bind_ortvalue_output(present, buffer)
        return binding
