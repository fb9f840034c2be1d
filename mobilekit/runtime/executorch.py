"""A ``.pte`` as a runtime: one resident-cache method, run by ExecuTorch's own runtime."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.optional import require

from .base import Cursor, Logits, Tokens

METHOD = "forward"
RECURRENT = "is_recurrent"  # constant method: whether the state is a running one


class ExecutorchRuntime:
    """Interface ``token-logits/1`` over ``forward(tokens (1, S), input_pos (1,))``.

    The cache lives in the loaded method. Slots at and after the current position are hidden by
    the program's own mask, so starting again or going back needs no clearing; a program with a
    running state forgets it at position 0 by itself.

    Args:
        path: The ``.pte``; it is mapped into memory, not read.
        context_length: Positions that its cache holds.
        vocab_size: V.
        threads: Compute threads; ExecuTorch's own choice where ``None``. The thread pool belongs
            to the process, so this sets it for every program in it.

    Raises:
        InvalidInputError: If the file is missing, damaged, or not such a program.
        MissingDependencyError: If ExecuTorch is not installed.
    """

    name = "executorch"

    def __init__(
        self, path: Path, *, context_length: int, vocab_size: int, threads: int | None = None
    ) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size
        with console.native_silence():  # it reports every processor file that a phone would have
            _runtime()
            if threads is not None:
                _set_threads(threads)
            self._program = load_program(path)  # the method does not keep its program alive
            self._method = self._load_method(path)
        self.version: str = importlib.metadata.version("executorch")
        shape: tuple[int, ...] = self._method.metadata.input_tensor_meta(0).sizes()
        self._longest = shape[1]  # of a dynamic shape this is the upper bound
        self.cursor = Cursor(
            vocab_size=vocab_size,
            context_length=context_length,
            is_recurrent=self._constant(RECURRENT, default=False),
        )

    def reset(self) -> None:
        """Forget everything; the next call must start at position 0."""
        self.cursor.reset()

    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Return the logits of the last token, shape (V,), float32.

        A prompt longer than one call of the program takes is given to it in parts.
        """
        with self.cursor.call(tokens, position):
            ids = np.ascontiguousarray(tokens, dtype=np.int64)
            for start in range(0, len(ids), self._longest):
                logits = self._run(ids[start : start + self._longest], position + start)
        return logits

    def _run(self, ids: Tokens, position: int) -> Logits:
        import torch

        inputs = [torch.from_numpy(ids)[None].contiguous(), torch.tensor([position])]
        try:
            with _one_blas_thread():
                (logits,) = self._method.execute(inputs)
        except RuntimeError as error:  # its manifest tells another vocabulary or context, perhaps
            raise InvalidInputError(
                f"the program refused {len(ids)} tokens (ids {ids.min()} to {ids.max()}) at "
                f"position {position}: {_first_line(error)}",
                hint="The file and its manifest do not belong together; export it anew.",
            ) from error
        # the output's memory is planned: the next call writes over it
        return logits[0, -1].float().numpy().copy()  # type: ignore[no-any-return]

    def _constant(self, name: str, *, default: Any) -> Any:
        """Return what a constant method of the file gives."""
        if name not in self._program.method_names:
            return default
        return self._program.load_method(name).execute([])[0]

    def _load_method(self, path: Path) -> Any:
        if METHOD not in self._program.method_names:
            raise InvalidInputError(
                f"{path} has no method '{METHOD}'; it has {sorted(self._program.method_names)}",
                hint="Export the model again, or open it with the tool that wrote it.",
            )
        try:
            return self._program.load_method(METHOD)
        except RuntimeError as error:
            raise _damaged(path, error) from error


def load_program(path: Path, **options: Any) -> Any:
    """Load a ``.pte`` with the kernels that our programs need.

    Args:
        path: The file.
        options: As ``executorch.runtime.Runtime.load_program`` takes them.

    Raises:
        InvalidInputError: If the file is missing or damaged.
    """
    runtime = _runtime()
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}", hint="Give the path of a .pte file.")
    try:
        return runtime.load_program(path, **options)
    except RuntimeError as error:
        raise _damaged(path, error) from error


def _runtime() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental", at the first import
        # register the kernels of quantized embeddings and of attention with a cache; must come
        # before a program is loaded
        require("executorch.kernels.quantized", extra="executorch")
        require("executorch.extension.llm.custom_ops.custom_ops", extra="executorch")
        _limit_blas()
        return require("executorch.runtime", extra="executorch").Runtime.get()


def _set_threads(threads: int) -> None:
    pool = importlib.import_module("executorch.extension.pybindings.portable_lib")
    pool._unsafe_reset_threadpool(threads)


def _limit_blas() -> None:
    """Make MKL, torch's BLAS on x86-64, use one thread wherever nobody asks for more.

    The attention kernel calls it from every thread of ExecuTorch's pool. Where each call starts
    threads of its own, a prefill of two threads takes 2 to 50 times as long.
    """
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    library = ctypes.CDLL(str(path)) if path.is_file() else None
    limit = getattr(library, "mkl_serv_set_num_threads", None)
    if limit is not None:
        limit(1)
        torch.set_num_threads(torch.get_num_threads())  # torch's own calls keep what they had


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Take the calling thread, too, off torch's number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _damaged(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"{path} cannot be loaded as an ExecuTorch program: {_first_line(error)}",
        hint="The file is damaged or of another version; export the model again.",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
