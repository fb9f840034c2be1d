"""Text into token windows and calibration batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["calibration_batches", "encode", "read_text", "token_windows"]

_MAX_TEXT_BYTES = 1 << 30


def read_text(path: str | Path) -> str:
    """The content of a user's UTF-8 text file.

    Raises:
        InvalidInputError: If it is missing, no file, empty, too large or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(
            f"text file '{path}' does not exist", hint="Give the path of a UTF-8 text file."
        )
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise InvalidInputError(
            f"text file '{path}' is larger than 1 GiB", hint="Give a smaller sample of it."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"text file '{path}' is not UTF-8 (byte {error.start})",
            hint=f"Convert it first: iconv -t utf-8 {path} > converted.txt",
        ) from None
    if not text.strip():
        raise InvalidInputError(f"text file '{path}' is empty", hint="Give a file with text in it.")
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` without special tokens."""
    # verbose=False: a whole corpus is longer than the context, which is no reason to warn.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def token_windows(
    tokenizer: Any, text: str, *, length: int, prefix: int | None = None, keep_rest: bool = True
) -> list[list[int]]:
    """The text cut into windows that do not overlap and together hold every token once.

    Args:
        tokenizer: A transformers tokenizer.
        text: Any text.
        length: Text tokens in a window, at least 2.
        prefix: A token id put before each window, not counted in ``length``; with it, every
            token of the text has a prediction.
        keep_rest: Whether the last, shorter window is kept.

    Raises:
        ValueError: If ``length`` is below 2.
    """
    if length < 2:
        raise ValueError(f"a window needs a length of at least 2 tokens, got {length}")
    ids = encode(tokenizer, text)
    windows = [ids[start : start + length] for start in range(0, len(ids), length)]
    if windows and len(windows[-1]) < length and not keep_rest:
        windows.pop()
    return windows if prefix is None else [[prefix, *window] for window in windows]


def calibration_batches(
    tokenizer: Any,
    text: str | Sequence[int],
    *,
    num_calibration_samples: int,
    length: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Random windows of ``text``, batched; the same generator state gives the same batches.

    Args:
        tokenizer: A transformers tokenizer; unused where ``text`` holds token ids already.
        text: Text, or the token ids of a text.
        num_calibration_samples: Windows in all, at least 1.
        length: Tokens in a window.
        batch_size: Windows in a batch; the last batch may be smaller.
        generator: Source of the window positions.

    Returns:
        Token ids, each of shape (B, S), int64, on the CPU.

    Raises:
        InvalidInputError: If the text is shorter than one window.
        ValueError: If a count is below 1.
    """
    import torch

    if min(num_calibration_samples, length, batch_size) < 1:
        raise ValueError("num_calibration_samples, length and batch_size must be at least 1")
    ids = torch.tensor(encode(tokenizer, text) if isinstance(text, str) else list(text))
    if len(ids) < length:
        raise InvalidInputError(
            f"the calibration text holds {len(ids)} tokens, a window needs {length}",
            hint="Give a longer text or a smaller window length.",
        )
    last = len(ids) - length + 1
    starts = torch.randint(last, (num_calibration_samples,), generator=generator)
    samples = ids[starts[:, None] + torch.arange(length)]  # (N, S)
    return list(torch.split(samples.long(), batch_size))
