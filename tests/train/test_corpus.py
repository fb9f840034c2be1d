"""What recovery training reads: where it comes from, how it is split, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.train.config import RecoverConfig
from mobilekit.train.corpus import Corpus, check_sources, open_corpus

LENGTH = 10


class ByteTokenizer:
    """Tokens are the bytes; 0 is the end of a text."""

    eos_token_id: int | None = 0
    pad_token_id: int | None = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


class PaddingTokenizer(ByteTokenizer):
    pad_token_id = 7


def opened(tokenizer: Any = None, vocab_size: int = 256, **changes: Any) -> Corpus:
    config = RecoverConfig(**{"sequence_length": LENGTH, **changes})
    return open_corpus(config, tokenizer or ByteTokenizer(), vocab_size=vocab_size)


def token_file(path: Path, ids: Any, dtype: str = "uint16") -> str:
    np.save(path, np.array(ids, dtype=dtype))
    return str(path)


def test_token_files_are_trained_on_where_they_lie(tmp_path: Path) -> None:
    name = token_file(tmp_path / "a.npy", range(200))
    corpus = opened(data=name)
    assert isinstance(corpus.stream, np.memmap)
    assert corpus.stream.tolist() == list(range(180))
    assert corpus.windows.tolist() == [list(range(180, 190)), list(range(190, 200))]
    batch = corpus.batch(50, torch.Generator().manual_seed(0))
    assert batch.dtype == torch.int64
    assert batch.shape == (50, LENGTH)
    assert all(row == list(range(row[0], row[0] + LENGTH)) for row in batch.tolist())
    assert corpus.padding_id is None


def test_batches_are_those_of_the_same_generator_on_a_tensor(tmp_path: Path) -> None:
    """Where windows begin is part of what a seed means."""
    corpus = opened(data=token_file(tmp_path / "a.npy", range(200)))
    stream = torch.arange(180)
    starts = torch.randint(180 - LENGTH + 1, (8,), generator=torch.Generator().manual_seed(5))
    expected = stream[starts[:, None] + torch.arange(LENGTH)]
    assert torch.equal(corpus.batch(8, torch.Generator().manual_seed(5)), expected)


def test_the_same_tokens_are_the_same_corpus(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text of a few words " * 20)
    ids = list(text.read_bytes())
    corpora = [opened(data=str(text)), opened(data=[str(text)])]
    corpora += [
        opened(data=token_file(tmp_path / f"{dtype}.npy", ids, dtype))
        for dtype in ("uint16", "int64")
    ]
    assert len({corpus.sha256 for corpus in corpora}) == 1
    assert all(torch.equal(corpus.windows, corpora[0].windows) for corpus in corpora)


def test_documents_are_kept_apart_where_that_is_wanted(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for name in names:
        Path(name).write_text("a" * 30)
    stream = opened(data=names, heldout=names[0]).stream.tolist()
    assert stream == [97] * 30 + [0] + [97] * 30
    joined = opened(data=names, heldout=names[0], document_separator=False)
    assert joined.stream.tolist() == [97] * 60
    tokenizer = ByteTokenizer()
    tokenizer.eos_token_id = None
    assert len(opened(tokenizer, data=names, heldout=names[0]).stream) == 60


def test_heldout_is_read_from_where_it_is_said(tmp_path: Path) -> None:
    data = token_file(tmp_path / "a.npy", range(100))
    held = token_file(tmp_path / "b.npy", range(100, 125))
    corpus = opened(data=data, heldout=held)
    assert len(corpus.stream) == 100
    assert corpus.windows.tolist() == [list(range(100, 110)), list(range(110, 120))]


def test_at_most_64_windows_spread_over_the_text(tmp_path: Path) -> None:
    held = token_file(tmp_path / "b.npy", [i // LENGTH for i in range(200 * LENGTH)])
    corpus = opened(data=token_file(tmp_path / "a.npy", range(100)), heldout=held)
    firsts = corpus.windows[:, 0].tolist()
    assert firsts == [i * 200 // 64 for i in range(64)]


def test_padding_is_what_the_tokenizer_declares_apart_from_end_of_text(tmp_path: Path) -> None:
    name = token_file(tmp_path / "a.npy", [7] * 5 + [1] * 100)
    assert opened(PaddingTokenizer(), data=name).padding_id == 7
    assert opened(data=name).padding_id is None
    plain = token_file(tmp_path / "b.npy", [1] * 100)
    assert opened(PaddingTokenizer(), data=plain).padding_id is None
    held = opened(PaddingTokenizer(), data=plain, heldout=name)
    assert held.padding_id == 7
    nothing = token_file(tmp_path / "c.npy", [7] * 100)
    with pytest.raises(InvalidInputError, match="nothing but padding"):
        opened(PaddingTokenizer(), data=nothing)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    name = token_file(tmp_path / "a.npy", range(100))
    text = tmp_path / "a.txt"
    text.write_text("text")
    with pytest.raises(InvalidInputError, match=r"token 90 at position 90.*has 90"):
        opened(data=name, vocab_size=90, heldout=name)
    with pytest.raises(InvalidInputError, match="held-out text holds token 95"):
        opened(data=name, vocab_size=95)
    with pytest.raises(InvalidInputError, match="training text holds 100 tokens"):
        opened(data=name, sequence_length=101)
    with pytest.raises(InvalidInputError, match="training text holds 4 tokens"):
        opened(data=str(text), heldout=name)
    with pytest.raises(UsageError, match="together with 1 more"):
        opened(data=[name, str(text)])
    with pytest.raises(InvalidInputError, match="does not exist"):
        opened(data=str(tmp_path / "absent.txt"))


def test_files_are_checked_without_a_tokenizer(tmp_path: Path) -> None:
    name = token_file(tmp_path / "a.npy", range(100))
    text = tmp_path / "a.txt"
    text.write_text("text")

    def check(vocab_size: int = 256, **settings: Any) -> None:
        check_sources(RecoverConfig(**settings), vocab_size=vocab_size)

    check()
    check(data=name, heldout=[str(text)])
    with pytest.raises(InvalidInputError, match="at position 50"):
        check(vocab_size=50, data=name)
    with pytest.raises(InvalidInputError, match="does not exist"):
        check(heldout="absent.txt")
    with pytest.raises(UsageError, match="together with 1 more"):
        check(data=[str(text), name])
    text.write_bytes(b"\xff\xff")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        check(data=str(text))


@pytest.mark.slow
def test_the_embedded_text_has_a_heldout_text_of_its_own() -> None:
    from mobilekit.data.corpora import heldout_text, training_text

    corpus = opened(sequence_length=16)
    assert len(corpus.stream) == len(training_text().encode())
    start = heldout_text().encode()[:16]
    assert corpus.windows[0].tolist() == list(start)


def test_files_of_the_settings() -> None:
    assert RecoverConfig().files() == ()
    assert RecoverConfig(data="embedded", heldout="b.txt").files() == ("b.txt",)
    assert RecoverConfig(data=["a", "b"], heldout="c.npy").files() == ("a", "b", "c.npy")
