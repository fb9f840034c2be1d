"""What recovery training reads: a stream of tokens, and held-out windows, checked beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.data.tokens import (
    TokenFacts,
    check_text_file,
    encode_files,
    is_token_file,
    open_tokens,
    scan_tokens,
)

from .config import EMBEDDED, RecoverConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    Ids = NDArray[np.integer[Any]]

__all__ = ["Corpus", "check_sources", "open_corpus"]

_HELDOUT_WINDOWS = 64  # enough to rank two models, and quick on a CPU
_HELDOUT_SHARE = 0.1


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and to judge by.

    Attributes:
        stream: Training tokens, shape (T,), T >= ``length``; memory-mapped where they are a file.
        windows: Held-out windows, shape (N, S), int64, on the CPU.
        length: S, tokens in a sequence.
        padding_id: Id of the tokens that count in no loss; ``None`` where there are none.
        sha256: Of the training tokens.
    """

    stream: Ids
    windows: Tensor
    length: int
    padding_id: int | None
    sha256: str

    def batch(self, sequences: int, generator: torch.Generator) -> Tensor:
        """Return random sequences, shape (B, S), int64, on the CPU; nothing is padded."""
        import torch

        last = len(self.stream) - self.length + 1
        starts = torch.randint(last, (sequences,), generator=generator).tolist()
        return _rows(self.stream, starts, self.length)


def open_corpus(
    config: RecoverConfig,
    tokenizer: Any,
    *,
    vocab_size: int,
    data: str | None = None,
    heldout: str | None = None,
) -> Corpus:
    """Open and check all that training reads; no weight is needed.

    Args:
        config: What to read, and the length of a sequence.
        tokenizer: The model's; its padding id, where it has one that is not its end-of-text id,
            is left out of every loss.
        vocab_size: The model's number of ids.
        data: A text in place of ``config.data``.
        heldout: A text in place of ``config.heldout``.

    Raises:
        InvalidInputError: If a file is missing or damaged, an id is beyond the vocabulary, or
            there is not one whole sequence, or nothing but padding.
        UsageError: If a token file is given together with others.
    """
    padding_id = _padding_id(tokenizer)
    ids = _from_text(tokenizer, data) if data is not None else _ids(config, config.data, tokenizer)
    names = heldout if heldout is not None else config.heldout
    if heldout is not None:
        rest = _from_text(tokenizer, heldout)
    elif names is not None:
        rest = _ids(config, names, tokenizer, is_heldout=True)
    elif data is None and config.data == EMBEDDED:
        rest = _ids(config, EMBEDDED, tokenizer, is_heldout=True)
    else:
        ids, rest = _split(ids, config.sequence_length)
    facts = [
        _check(tokens, name, config.sequence_length, vocab_size, padding_id)
        for tokens, name in ((ids, "training"), (rest, "held-out"))
    ]
    windows = _spread(rest, config.sequence_length)
    is_padded = padding_id is not None and bool(facts[0].padding or (windows == padding_id).any())
    return Corpus(
        ids, windows, config.sequence_length, padding_id if is_padded else None, facts[0].sha256
    )


def check_sources(config: RecoverConfig, *, vocab_size: int) -> None:
    """Check the user's files before any other work: text that is there, tokens whole and in range.

    Raises:
        InvalidInputError: If a file cannot be trained on.
        UsageError: If a token file is given together with others.
    """
    for names in (config.data, config.heldout):
        paths = (names,) if isinstance(names, str) else names or ()
        _check_mixture(paths)
        for path in paths:
            if is_token_file(path):
                tokens = open_tokens(path)
                scan_tokens(tokens, vocab_size=vocab_size, padding_id=None, name=path)
            elif path != EMBEDDED:
                check_text_file(path)


def _ids(
    config: RecoverConfig,
    names: str | tuple[str, ...],
    tokenizer: Any,
    *,
    is_heldout: bool = False,
) -> Ids:
    """Return the tokens of a setting: memory-mapped where they are a file of them."""
    import numpy as np

    if names == EMBEDDED:
        from mobilekit.data.corpora import heldout_text, training_text

        return _from_text(tokenizer, heldout_text() if is_heldout else training_text())
    paths = (names,) if isinstance(names, str) else names
    _check_mixture(paths)
    if is_token_file(paths[0]):
        return open_tokens(paths[0])
    separator = getattr(tokenizer, "eos_token_id", None) if config.document_separator else None
    blocks = encode_files(paths, tokenizer, separator=separator)
    return np.concatenate([np.array(block, dtype=np.uint32) for block in blocks])


def _from_text(tokenizer: Any, text: str) -> Ids:
    import numpy as np

    from mobilekit.data.text import encode

    return np.array(encode(tokenizer, text), dtype=np.uint32)


def _split(tokens: Ids, length: int) -> tuple[Ids, Ids]:
    """Return training tokens, and the last tenth of all, at least a sequence, to judge by."""
    if len(tokens) < 2 * length:
        raise InvalidInputError(
            f"the training text holds {len(tokens)} tokens, a sequence needs {length}, and one "
            "more is held out",
            hint="Give a longer text, a text of its own as heldout, or a smaller sequence_length.",
        )
    cut = len(tokens) - max(length, int(len(tokens) * _HELDOUT_SHARE))
    return tokens[:cut], tokens[cut:]


def _check_mixture(paths: tuple[str, ...]) -> None:
    tokens = [path for path in paths if is_token_file(path)]
    if tokens and len(paths) > 1:
        raise UsageError(
            f"'{tokens[0]}' is given together with {len(paths) - 1} more",
            hint="Give one token file, or text files only.",
        )


def _check(
    tokens: Ids, name: str, length: int, vocab_size: int, padding_id: int | None
) -> TokenFacts:
    if len(tokens) < length:
        raise InvalidInputError(
            f"the {name} text holds {len(tokens)} tokens, a sequence needs {length}",
            hint="Give a longer text or a smaller sequence_length.",
        )
    facts = scan_tokens(
        tokens, vocab_size=vocab_size, padding_id=padding_id, name=f"the {name} text"
    )
    if facts.padding == facts.tokens:
        raise InvalidInputError(
            f"the {name} text holds nothing but padding (token {padding_id})",
            hint="Give a file with text in it.",
        )
    return facts


def _padding_id(tokenizer: Any) -> int | None:
    """Return the tokenizer's padding id if it is one of its own: end-of-text is learnt."""
    padding = getattr(tokenizer, "pad_token_id", None)
    return None if padding == getattr(tokenizer, "eos_token_id", None) else padding


def _spread(tokens: Ids, length: int) -> Tensor:
    """Return windows that lie evenly over the text, so that no single document decides."""
    available = len(tokens) // length
    count = min(_HELDOUT_WINDOWS, available)
    return _rows(tokens, [i * available // count * length for i in range(count)], length)


def _rows(tokens: Ids, starts: list[int], length: int) -> Tensor:
    """Return the runs of tokens from each start on, shape (B, S), int64."""
    import numpy as np
    import torch

    return torch.from_numpy(
        np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)
    )
