"""Token files: what is refused, what a pass over them tells, and that writing equals encoding."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilekit.core.errors import InvalidInputError, OutputError
from mobilekit.data import tokens as module
from mobilekit.data.text import encode
from mobilekit.data.tokens import encode_files, open_tokens, scan_tokens, write_tokens
from mobilekit.train.embedded_default import build_tokenizer

TEXT = "One line.\nAnother line, longer.\n\n  An indented one.\n\nThe last one"


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE tokenizer, which splits text as those of real models do."""
    return build_tokenizer([TEXT * 20, "line\n\nline\n" * 50], 300)


def stored(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "int64", ">u2"])
def test_a_token_file_is_mapped_not_read(dtype: str, tmp_path: Path) -> None:
    path = stored(tmp_path / "a.npy", np.arange(7, dtype=dtype))
    ids = open_tokens(path)
    assert isinstance(ids, np.memmap)
    assert not ids.flags.writeable
    assert ids.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.arange(6).reshape(2, 3), r"int64 of shape \(2, 3\)"),
        (np.arange(6.0), "float64"),
        (np.arange(6, dtype=np.uint8), "uint8"),
        (np.array(3), r"shape \(\)"),
        (np.array(["a", "b"]), "str"),
    ],
)
def test_what_is_no_row_of_ids_is_refused(array: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=words):
        open_tokens(stored(tmp_path / "a.npy", array))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidInputError, match="no whole .npy file"):
        open_tokens(path)


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npy_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InvalidInputError, match="no whole .npy file"):
        open_tokens(tmp_path / "a.npy")


def test_missing_truncated_and_several(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        open_tokens(tmp_path / "absent.npy")
    path = stored(tmp_path / "a.npy", np.arange(1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match="no whole .npy file"):
        open_tokens(path)
    np.savez(tmp_path / "b.npz", a=np.arange(3), b=np.arange(3))
    with pytest.raises(InvalidInputError, match="several arrays"):
        open_tokens((tmp_path / "b.npz").rename(tmp_path / "b.npy"))


@pytest.mark.parametrize(("wrong", "shown"), [(8, "token 8"), (-1, "token -1")])
def test_an_id_that_the_model_lacks_is_named(
    wrong: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCAN", 4)
    ids = np.array([0, 7, 3, 1, 2, wrong, 99])
    with pytest.raises(InvalidInputError, match=f"{shown} at position 5.*has 8"):
        scan_tokens(ids, vocab_size=8, padding_id=None, name="it")


def test_a_pass_counts_and_hashes_whatever_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCAN", 3)
    ids = [5, 0, 0, 7, 0]
    expected = hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest()
    for dtype in ("uint16", "int64", ">u4"):
        facts = scan_tokens(np.array(ids, dtype=dtype), vocab_size=8, padding_id=0, name="it")
        assert (facts.tokens, facts.padding, facts.sha256) == (5, 3, expected)


def test_writing_is_encoding(bpe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text(TEXT * 30)
    second.write_text("Ends here.")
    monkeypatch.setattr(module, "_BLOCK", 100)
    out = tmp_path / "deep" / "ids.npy"
    count = write_tokens([first, second], bpe, out, vocab_size=300, separator=0)
    ids = np.load(out)
    assert ids.dtype == np.uint16
    assert ids.tolist() == [*encode(bpe, TEXT * 30), 0, *encode(bpe, "Ends here.")]
    assert count == len(ids)
    assert [path.name for path in out.parent.iterdir()] == ["ids.npy"]
    write_tokens([second], bpe, out, vocab_size=70_000, separator=0)
    assert np.load(out).dtype == np.uint32


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab é😀.\n\r\t ", min_size=1, max_size=200).filter(str.strip),
    block=st.integers(1, 60),
)
def test_blocks_do_not_change_the_tokens(
    text: str, block: int, bpe: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        blocks = list(encode_files([path], bpe, separator=None))
    assert [i for ids in blocks for i in ids] == encode(bpe, path.read_text(encoding="utf-8"))


def test_text_that_cannot_be_encoded_leaves_nothing(bpe: Any, tmp_path: Path) -> None:
    cases = {"absent": None, "empty": b" \n", "binary": b"\xff\xfe\x00", "later": b"a" * 9000}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content + (b"\xff" if name == "later" else b""))
        with pytest.raises(InvalidInputError, match=r"does not exist|is empty|is not UTF-8"):
            write_tokens([tmp_path / name], bpe, tmp_path / "o.npy", vocab_size=9, separator=None)
    with pytest.raises(InvalidInputError, match="is a directory"):
        write_tokens([tmp_path], bpe, tmp_path / "o.npy", vocab_size=9, separator=None)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "binary", "later"}


def test_a_place_that_cannot_be_written_is_named(bpe: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(OutputError, match="a part of its path is a file"):
        write_tokens(
            [tmp_path / "a.txt"],
            bpe,
            tmp_path / "a.txt" / "o.npy",
            vocab_size=9,
            separator=None,
        )
