"""Token files: one flat array of ids in numpy's own format, read where it lies.

A file may be larger than memory: it is opened memory-mapped, checked and hashed in blocks, and
written in blocks. Numpy reads and writes the same files: ``np.save("tokens.npy", ids)``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import writing

from .text import encode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "TOKEN_DTYPES",
    "TokenFacts",
    "check_text_file",
    "encode_files",
    "is_token_file",
    "open_tokens",
    "scan_tokens",
    "write_tokens",
]

TOKEN_DTYPES = ("uint16", "uint32", "int32", "int64")
TOKEN_SUFFIX = ".npy"
_SCAN = 1 << 22  # ids looked at at once
_BLOCK = 1 << 20  # characters encoded at once
_GLANCE = 1 << 12  # characters read to see whether a file is text
_HINT = "Write one with: mobilekit tokens TEXT --tokenizer MODEL --out tokens.npy"


@dataclass(frozen=True)
class TokenFacts:
    """What a pass over all tokens tells.

    Attributes:
        tokens: How many there are.
        padding: How many of them are padding.
        sha256: Over the ids as little-endian int64, so that neither dtype nor file matters.
    """

    tokens: int
    padding: int
    sha256: str


def is_token_file(path: str | Path) -> bool:
    """Tell by its name whether a file holds tokens, not text."""
    return Path(path).suffix == TOKEN_SUFFIX


def open_tokens(path: str | Path) -> NDArray[np.integer[Any]]:
    """Open a token file; nothing but its header is read.

    Returns:
        The ids, memory-mapped and read-only, shape (T,), one of ``TOKEN_DTYPES``.

    Raises:
        InvalidInputError: If it is missing, cannot be read, is no ``.npy`` file, is shorter than
            its header says, or holds anything else than one row of ids.
    """
    import numpy as np

    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"token file '{path}' does not exist", hint=_HINT)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InvalidInputError(
            f"token file '{path}' cannot be read: {error.strerror or error}",
            hint="Check the file and its permissions.",
        ) from None
    except (ValueError, EOFError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InvalidInputError(f"'{path}' is no whole .npy file: {reason}", hint=_HINT) from None
    if not isinstance(array, np.ndarray):  # an archive of several arrays
        raise InvalidInputError(f"'{path}' holds several arrays, expected one", hint=_HINT)
    if array.ndim != 1 or array.dtype.newbyteorder("=").name not in TOKEN_DTYPES:
        raise InvalidInputError(
            f"'{path}' holds {array.dtype.name} of shape {array.shape}, expected one dimension of "
            f"{', '.join(TOKEN_DTYPES[:-1])} or {TOKEN_DTYPES[-1]}",
            hint=_HINT,
        )
    return array


def scan_tokens(
    tokens: NDArray[np.integer[Any]], *, vocab_size: int, padding_id: int | None, name: str
) -> TokenFacts:
    """Look at every token once, in blocks, with progress.

    Args:
        tokens: Ids, shape (T,).
        vocab_size: The model's; ids are below it.
        padding_id: The id that is counted as padding, where there is one.
        name: Where they come from, for messages.

    Raises:
        InvalidInputError: If an id is negative, or beyond the vocabulary.
    """
    digest, padding = hashlib.sha256(), 0
    with console.progress(len(tokens), f"checking {name}") as bar:
        for start in range(0, len(tokens), _SCAN):
            block = tokens[start : start + _SCAN]
            wrong = (block < 0) | (block >= vocab_size)
            if wrong.any():
                first = int(wrong.argmax())
                raise InvalidInputError(
                    f"{name} holds token {int(block[first])} at position {start + first}, the "
                    f"model's vocabulary has {vocab_size}",
                    hint="Encode the text with this model's own tokenizer.",
                )
            if padding_id is not None:
                padding += int((block == padding_id).sum())
            digest.update(block.astype("<i8").tobytes())
            bar.advance(len(block))
    return TokenFacts(len(tokens), padding, digest.hexdigest())


def encode_files(
    paths: Sequence[str | Path], tokenizer: Any, *, separator: int | None
) -> Iterator[list[int]]:
    """Encode UTF-8 text files a block at a time, with progress.

    A block ends after a line whose successor begins with text, where the tokenizers that we know
    begin a new token anyway; a file without such a place is encoded whole.

    Args:
        paths: The files, in order.
        tokenizer: As :func:`mobilekit.data.text.encode` takes it.
        separator: Id put between two files; nothing where ``None``.

    Yields:
        Ids of a block.

    Raises:
        InvalidInputError: If a file is missing, not UTF-8, or holds no text.
    """
    for path in paths:
        check_text_file(path)
    size = sum(Path(path).stat().st_size for path in paths)
    with console.progress(size, "encoding text") as bar:
        for index, path in enumerate(paths):
            if index and separator is not None:
                yield [separator]
            for block in _blocks(Path(path)):
                yield encode(tokenizer, block)
                bar.advance(len(block.encode()))


def check_text_file(path: str | Path) -> None:
    """Check that a file is there, can be read, and begins with UTF-8.

    Raises:
        InvalidInputError: If not.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InvalidInputError(
            f"text file '{path}' {what}", hint="Give the path of a UTF-8 text file."
        )
    next(_blocks(path, characters=_GLANCE))


def write_tokens(
    paths: Sequence[str | Path],
    tokenizer: Any,
    out: Path,
    *,
    vocab_size: int,
    separator: int | None,
) -> int:
    """Encode text files into one token file, a block at a time, whole or not at all.

    Args:
        paths: UTF-8 text files, in order.
        tokenizer: As :func:`mobilekit.data.text.encode` takes it.
        out: The file to write; uint16 where every id of the vocabulary fits, else uint32.
        vocab_size: Number of ids.
        separator: Id put between two files; nothing where ``None``.

    Returns:
        The number of tokens written.

    Raises:
        InvalidInputError: As :func:`encode_files` does.
        OutputError: If it cannot be written.
    """
    for path in paths:  # what cannot be read is no trouble with writing
        check_text_file(path)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    temporary = out.with_name(f".{out.name}.tmp")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                blocks = encode_files(paths, tokenizer, separator=separator)
                count = _write_blocks(stream, blocks, dtype)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _write_blocks(stream: BinaryIO, blocks: Iterable[list[int]], dtype: str) -> int:
    """Write header and ids; the header leaves room for the count, which is known at the end."""
    import numpy as np

    def header(count: int) -> None:
        stream.seek(0)
        form: Any = {"descr": dtype, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(stream, form)

    header(0)
    begin, count = stream.tell(), 0
    for block in blocks:
        stream.write(np.array(block, dtype=dtype).tobytes())
        count += len(block)
    header(count)
    if stream.tell() != begin:  # numpy pads every header for counts of up to 21 digits
        raise AssertionError("the header of a .npy file grew with its count")
    return count


def _blocks(path: Path, characters: int = _BLOCK) -> Iterator[str]:
    """Yield the text of a file in blocks of at least so many characters, the last one excepted."""
    has_text = False
    try:
        with path.open(encoding="utf-8") as stream:
            block = stream.read(characters)
            while more := stream.read(characters):
                has_text = has_text or not block.isspace()
                cut = _last_line_start(block)
                if cut:
                    yield block[:cut]
                block = block[cut:] + more
    except UnicodeDecodeError:
        raise InvalidInputError(
            f"text file '{path}' is not UTF-8",
            hint=f"Convert it first: iconv -t utf-8 {path} > converted.txt",
        ) from None
    if not has_text and not block.strip():
        raise InvalidInputError(f"text file '{path}' is empty", hint="Give a file with text in it.")
    yield block


def _last_line_start(text: str) -> int:
    """Return where the last line begins that starts with text after one that ends with text."""
    at = text.rfind("\n")
    while at > 0:
        if at + 1 < len(text) and not text[at - 1].isspace() and not text[at + 1].isspace():
            return at + 1
        at = text.rfind("\n", 0, at)
    return 0
