"""Text into token windows and calibration batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError

from .tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["calibration_batches", "encode", "read_text", "token_windows"]

_MAX_TEXT_BYTES = 1 << 30
_CHARACTERS_A_TOKEN = 6  # to begin with; what is too few is read again, twice as far


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
    """Token ids of ``text`` without special tokens.

    Args:
        tokenizer: A transformers tokenizer, or a :class:`~mobilekit.data.tokenizer.TextTokenizer`.
        text: Any text.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer.encode(text)
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
    text: str,
    *,
    num_calibration_samples: int,
    length: int,
    batch_size: int,
    generator: torch.Generator,
    prefix: Sequence[int] = (),
) -> list[torch.Tensor]:
    """Random windows of ``text``, batched; the same generator state gives the same windows.

    Only the windows are encoded, so that a long text costs no more than a short one.

    Args:
        tokenizer: As :func:`encode` takes it.
        text: Any text.
        num_calibration_samples: Windows in all, at least 1.
        length: Tokens in a window, ``prefix`` included.
        batch_size: Windows in a batch; the last batch may be smaller.
        generator: Source of the window positions.
        prefix: Token ids that every window begins with, such as a begin-of-text token.

    Returns:
        Token ids, each of shape (B, S), int64, on the CPU.

    Raises:
        InvalidInputError: If the text is shorter than one window.
        ValueError: If a count is below 1, or the prefix leaves no room for text.
    """
    import torch

    if min(num_calibration_samples, length, batch_size) < 1:
        raise ValueError("num_calibration_samples, length and batch_size must be at least 1")
    if length <= len(prefix):
        raise ValueError(f"a window of {length} tokens has no room for text after {len(prefix)}")
    starts = torch.randint(max(1, len(text)), (num_calibration_samples,), generator=generator)
    inner = length - len(prefix)
    windows = [[*prefix, *_window(tokenizer, text, start, inner)] for start in starts.tolist()]
    return list(torch.split(torch.tensor(windows), batch_size))


def _window(tokenizer: Any, text: str, start: int, length: int) -> list[int]:
    """The tokens from a character on; where the text ends before, its last ones."""
    reach = _CHARACTERS_A_TOKEN * length
    while True:
        stop = min(start + reach, len(text))
        ids = encode(tokenizer, text[start:stop])
        if len(ids) > length or (len(ids) == length and stop == len(text)):
            return ids[:length]  # the last token of a cut text may itself be cut
        if stop == len(text):
            break
        reach *= 2
    while True:
        begin = max(0, len(text) - reach)
        ids = encode(tokenizer, text[begin:])
        if len(ids) >= length:
            return ids[-length:]
        if begin == 0:
            raise InvalidInputError(
                f"the calibration text holds {len(ids)} tokens, a window needs {length}",
                hint="Give a longer text or a smaller window length.",
            )
        reach *= 2
