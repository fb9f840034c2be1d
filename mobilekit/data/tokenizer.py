"""Text to token ids and back, from ``tokenizer.json`` alone: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import read_json, sha256_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextTokenizer", "load_tokenizer", "wrap_tokenizer"]

TOKENIZER_FILE = "tokenizer.json"
_HINT = "Copy tokenizer.json and tokenizer_config.json of the original model beside it."


class TextTokenizer:
    """Encodes plain text; nothing is added that the text does not hold.

    Args:
        inner: A ``tokenizers.Tokenizer``; its truncation and padding are switched off.
        eos_id: Id of the end-of-text token, where there is one.

    Attributes:
        eos_id: As given.
        prefix_ids: What the tokenizer itself puts before a text: a begin-of-text token or nothing.
        vocab_size: Number of ids, added tokens included.
    """

    def __init__(self, inner: Tokenizer, *, eos_id: int | None = None) -> None:
        self._inner = inner
        inner.no_truncation()
        inner.no_padding()
        self.eos_id = eos_id
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.prefix_ids = self._prefix()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``, without special tokens around it."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids, and for each the index in ``text`` just after its characters.

        The ends never decrease. Tokens that share a character (bytes of one emoji) share an end.
        """
        encoding = self._inner.encode(text, add_special_tokens=False)
        ends, reached = [], 0
        for _, end in encoding.offsets:
            reached = max(reached, end)
            ends.append(reached)
        return list(encoding.ids), ends

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def sha256(self) -> str:
        """Return the SHA-256 of all that decides how text becomes ids."""
        return sha256_json([str(self._inner.to_str()), self.eos_id])

    def _prefix(self) -> tuple[int, ...]:
        plain = self.encode("a")
        whole = list(self._inner.encode("a").ids)
        starts = range(len(whole) - len(plain) + 1)
        found = (tuple(whole[:i]) for i in starts if whole[i : i + len(plain)] == plain)
        return next(found, ())


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Open the tokenizer of a checkpoint directory or of an unpacked bundle.

    Args:
        path: The directory, or a ``tokenizer.json`` itself.

    Raises:
        InvalidInputError: If there is no ``tokenizer.json``, or it cannot be read.
    """
    from tokenizers import Tokenizer

    file = _find(Path(path))
    try:
        inner = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises bare Exception for every kind of damage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{file} is not a tokenizer: {reason}", hint=_HINT) from None
    return TextTokenizer(inner, eos_id=_eos_id(file.parent, inner))


def wrap_tokenizer(tokenizer: Any) -> TextTokenizer:
    """Return a :class:`TextTokenizer` over what the caller has.

    Args:
        tokenizer: A :class:`TextTokenizer`, a ``tokenizers.Tokenizer``, or a fast tokenizer of
            transformers. A ``Tokenizer`` is copied, so that the caller's stays as it is.

    Raises:
        InvalidInputError: If it is none of them.
    """
    from tokenizers import Tokenizer

    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    eos_id = getattr(tokenizer, "eos_token_id", None)
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(inner, Tokenizer):
        raise InvalidInputError(
            f"{type(tokenizer).__name__} is no fast tokenizer: it has no tokenizer.json",
            hint="Load it with mobilekit.data.tokenizer.load_tokenizer(checkpoint).",
        )
    return TextTokenizer(Tokenizer.from_str(inner.to_str()), eos_id=eos_id)


def _find(path: Path) -> Path:
    if path.is_file() and path.suffix == ".json":
        return path
    for candidate in (path / TOKENIZER_FILE, path / "tokenizer" / TOKENIZER_FILE):
        if candidate.is_file():
            return candidate
    raise InvalidInputError(f"{path} has no {TOKENIZER_FILE}", hint=_HINT)


def _eos_id(folder: Path, inner: Tokenizer) -> int | None:
    """Return the end-of-text id that the files beside the tokenizer name, if any."""
    config = folder / "tokenizer_config.json"
    token = _mapping(config).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
        found: int | None = inner.token_to_id(token)
        return found
    for name in ("generation_config.json", "config.json"):
        value = _mapping(folder / name).get("eos_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path)
    return data if isinstance(data, dict) else {}
