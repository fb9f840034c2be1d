import hashlib
import json
from importlib import resources
from itertools import groupby
from pathlib import Path

import pytest

from mobilekit.core.errors import InvalidInputError
from mobilekit.data import corpora
from mobilekit.data.corpora import Document
from mobilekit.data.text import calibration_batches, read_text, token_windows


class ByteTokenizer:
    """Tokens are bytes."""

    eos_token_id = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode("utf-8"))}


def test_documents_are_sorted_unique_and_english():
    documents = corpora.cpython_documents()
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert sum(len(document.text) for document in documents) > 1_000_000
    assert {name.split("/")[0] for name in names} >= {"builtin", "source", "topic"}
    assert not any("/test/" in name or "idle_test" in name for name in names)
    text = corpora.training_text().lower()
    assert text.count(" the ") > 10_000


@pytest.mark.slow
def test_collecting_twice_gives_the_same_documents():
    first = corpora.cpython_documents()
    corpora.cpython_documents.cache_clear()
    assert corpora.cpython_documents() == first


def test_heldout_file_is_the_frozen_one():
    folder = resources.files("mobilekit.data") / "corpora"
    index = json.loads((folder / corpora.HELDOUT_INDEX).read_text("utf-8"))
    raw = corpora.heldout_text().encode("utf-8")
    assert hashlib.sha256(raw).hexdigest() == index["sha256"]
    assert 48_000 <= len(raw) == index["bytes"] <= 128_000
    assert "Python Software Foundation" in (folder / "LICENSE-PSF.txt").read_text("utf-8")


def test_heldout_documents_are_whole():
    documents = corpora.heldout_documents()
    assert corpora.DOCUMENT_SEPARATOR.join(d.text for d in documents) == corpora.heldout_text()
    assert all(corpora.is_heldout_name(document.name) for document in documents)


def test_no_eight_words_of_the_heldout_text_are_in_the_training_text():
    heldout = set().union(*(corpora._shingles(d.text) for d in corpora.heldout_documents()))
    assert len(heldout) > 5_000
    for document in corpora.training_documents():
        for paragraph in corpora._paragraphs(document.text):
            assert heldout.isdisjoint(corpora._shingles(paragraph)), document.name


def test_heldout_documents_are_not_training_documents():
    held = {document.name for document in corpora.heldout_documents()}
    assert held.isdisjoint(document.name for document in corpora.training_documents())


def test_clean_against_drops_only_the_paragraph_that_leaks():
    leak = "one two three four five six seven eight nine ten"
    fine = "Nothing in this long paragraph is repeated from any other place at all. " * 4
    heldout = [Document("a", f"before {leak} after")]
    rewrapped = leak.replace("five ", "five\n    ").upper()
    cleaned = corpora.clean_against([Document("b", f"{fine}\n\n{rewrapped}")], heldout)
    assert cleaned == (Document("b", fine.rstrip()),)
    assert corpora.clean_against([Document("c", rewrapped)], heldout) == ()


def test_split_is_decided_by_the_name():
    names = [f"document/{number}" for number in range(200)]
    documents = [Document(n, f"{n} is a text of its own with words enough. " * 6) for n in names]
    training, heldout = corpora.split_documents(documents)
    again, _ = corpora.split_documents(reversed(documents))
    assert {d.name for d in heldout} == {n for n in names if corpora.is_heldout_name(n)}
    assert sorted(training) == sorted(again)
    assert heldout


def test_comments_of_disabled_code_are_no_prose():
    prose = "# This explains at some length why the next lines do\n# what they do, and what not."
    prose += "\n# It has a third line."
    code = "# for (i = 0; i < n; ++i) { a[i] = b[i] * (c + d[i]); }\n# x = {1: 2, 3: 4}; y[0] += 1"
    found = list(corpora._comments(f"{prose}\nx = 1\n{code}\n"))
    assert [text.split()[0] for _, text in found] == ["This"]


def test_windows_hold_every_token_once():
    text = "abcdefghij"
    windows = token_windows(ByteTokenizer(), text, length=4)
    assert [bytes(window).decode() for window in windows] == ["abcd", "efgh", "ij"]
    assert token_windows(ByteTokenizer(), text, length=4, keep_rest=False) == windows[:2]
    prefixed = token_windows(ByteTokenizer(), text, length=4, prefix=0)
    assert [window[1:] for window in prefixed] == windows
    assert token_windows(ByteTokenizer(), "", length=4) == []
    with pytest.raises(ValueError, match="at least 2"):
        token_windows(ByteTokenizer(), text, length=1)


def test_calibration_batches_repeat_with_the_seed():
    import torch

    text = "the quick brown fox jumps over the lazy dog " * 10

    def draw(seed: int) -> list[torch.Tensor]:
        return calibration_batches(
            ByteTokenizer(),
            text,
            num_calibration_samples=5,
            length=16,
            batch_size=2,
            generator=torch.Generator().manual_seed(seed),
        )

    batches = draw(1)
    assert [tuple(batch.shape) for batch in batches] == [(2, 16), (2, 16), (1, 16)]
    assert all(batch.dtype == torch.int64 for batch in batches)
    assert all(torch.equal(a, b) for a, b in zip(batches, draw(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(batches, draw(2), strict=True))
    for row in torch.cat(batches):
        assert bytes(row.tolist()).decode() in text


def test_calibration_windows_do_not_depend_on_the_batch_size():
    import torch

    text = "the quick brown fox jumps over the lazy dog " * 10

    def draw(batch_size: int) -> torch.Tensor:
        batches = calibration_batches(
            ByteTokenizer(),
            text,
            num_calibration_samples=7,
            length=9,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(1),
            prefix=(1, 2),
        )
        return torch.cat(batches)

    assert draw(7).shape == (7, 9)
    assert all(torch.equal(draw(size), draw(7)) for size in (1, 2, 3))
    assert draw(7)[:, :2].tolist() == [[1, 2]] * 7


class RunTokenizer(ByteTokenizer):
    """A token is a run of one character, however long."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(list(run)) for _, run in groupby(text)]}


def test_calibration_reads_on_where_tokens_are_long():
    import torch

    text = "".join(letter * 500 for letter in "abcdefghij")
    batches = calibration_batches(
        RunTokenizer(),
        text,
        num_calibration_samples=40,
        length=4,
        batch_size=40,
        generator=torch.Generator().manual_seed(2),
    )
    for window in batches[0].tolist():
        assert window[1:] == [500, 500, 500]  # none is cut but the one it begins in
        assert 1 <= window[0] <= 500


def test_calibration_text_may_be_exactly_one_window_but_not_shorter():
    import torch

    def draw(text: str) -> list[torch.Tensor]:
        return calibration_batches(
            ByteTokenizer(),
            text,
            num_calibration_samples=1,
            length=4,
            batch_size=1,
            generator=torch.Generator(),
        )

    assert draw("abcd")[0].tolist() == [list(b"abcd")]
    with pytest.raises(InvalidInputError, match="3 tokens"):
        draw("abc")


def test_user_text_files_fail_clearly(tmp_path: Path):
    good, binary, empty = (tmp_path / name for name in ("good", "binary", "empty"))
    good.write_text("Grüße", encoding="utf-8")
    binary.write_bytes(b"ab\xff\xfe")
    empty.write_text(" \n")
    assert read_text(good) == "Grüße"
    with pytest.raises(InvalidInputError, match="byte 2"):
        read_text(binary)
    with pytest.raises(InvalidInputError, match="empty"):
        read_text(empty)
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_text(tmp_path / "absent")
