"""``mobilekit recover`` and ``mobilekit tokens`` as users run them, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilekit.models import load

from .conftest import Refused, Said, listing

NEXT = ["--set", "objective=[next_token]", "--set", "sequence_length=16", "--set", "tokens=640"]
TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with files of tokens and of text, good and bad, where the command runs."""
    (tmp_path / "good.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    ids = np.frombuffer(TEXT.encode(), dtype=np.uint8)
    np.save(tmp_path / "good.npy", ids.astype(np.uint16))
    np.save(tmp_path / "bytes.npy", ids)
    np.save(tmp_path / "floats.npy", ids.astype(np.float32))
    np.save(tmp_path / "square.npy", ids[:100].reshape(10, 10).astype(np.uint16))
    np.save(tmp_path / "beyond.npy", np.append(ids.astype(np.int32), 256))
    np.save(tmp_path / "negative.npy", np.append(ids.astype(np.int32), -1))
    np.save(tmp_path / "short.npy", np.arange(5, dtype=np.uint16))
    whole = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-10])
    return tmp_path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("absent.txt", "text file 'absent.txt' does not exist"),
        ("absent.npy", "token file 'absent.npy' does not exist"),
        ("empty.txt", "'empty.txt' is empty"),
        ("latin.txt", "'latin.txt' is not UTF-8"),
        ("short.txt", "the training text holds 5 tokens, a sequence needs 16"),
        ("short.npy", "the training text holds 5 tokens, a sequence needs 16"),
        ("bytes.npy", "holds uint8 of shape"),
        ("floats.npy", "holds float32 of shape"),
        ("square.npy", "uint16 of shape (10, 10)"),
        ("cut.npy", "no whole .npy file"),
        ("beyond.npy", "token 256 at position"),
        ("negative.npy", "token -1 at position"),
        ("[good.npy, good.txt]", "'good.npy' is given together with 1 more"),
        ("[]", "the name of a file, or a list of names"),
        ('""', "the name of a file, or a list of names"),
        ("null", "'data' is null"),
        ("7", "'data' is 7"),
        ("[good.txt, 7]", "the name of a file, or a list of names"),
    ],
)
def test_data_that_cannot_be_trained_on(
    data: str, words: str, shelf: Path, files: Path, refused: Refused
) -> None:
    more = ["--set", f"data={data}", "--quiet"]
    refused(["recover", shelf / "dense", *NEXT, *more, "--out", "new"], words)


def test_data_is_checked_before_any_weight_is_read(
    shelf: Path, files: Path, refused: Refused
) -> None:
    more = ["--set", "data=beyond.npy", "--quiet", "--out", "new"]
    refused(["recover", shelf / "truncated", *NEXT, *more], "token 256")
    more = ["--set", "heldout=absent.txt", "--quiet", "--out", "new"]
    refused(["recover", shelf / "truncated", *NEXT, *more], "absent.txt")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimizer=sgd", "'optimizer' is 'sgd'"),
        ("precision=float16", "'precision' is 'float16'"),
        ("gradient_accumulation=3", "a batch_size that gradient_accumulation divides"),
        ("warmup=1000", "a warmup of at most"),
        ("learning_rte=1", "did you mean 'learning_rate'?"),
    ],
)
def test_settings_that_make_no_sense(
    setting: str, words: str, shelf: Path, refused: Refused
) -> None:
    refused(["recover", shelf / "dense", *NEXT, "--set", setting, "--out", "new"], words)


@pytest.mark.parametrize("data", ["good.npy", "good.txt", "[good.txt, good.txt]"])
def test_it_trains_on_the_users_data(
    data: str, shelf: Path, files: Path, mobilekit: Callable[..., Said]
) -> None:
    asked = ["recover", shelf / "dense", *NEXT, "--set", f"data={data}", "--out", "new"]
    said = mobilekit(*asked, "--set", "gradient_accumulation=2", "--json")
    assert said.code == 0, said
    result = json.loads(said.out)
    assert result["steps"] == 5
    assert result["kept"] == "trained"
    assert result["heldout_loss_after"] < result["heldout_loss_before"]
    assert not list(files.glob(".*"))
    load(files / "new")


def test_weights_that_training_made_worse_are_not_kept_and_that_is_said(
    shelf: Path, files: Path, mobilekit: Callable[..., Said]
) -> None:
    more = ["--set", "data=good.txt", "--set", "learning_rate=9.0", "--out", "new"]
    said = mobilekit("recover", shelf / "dense", *NEXT, *more)
    assert said.code == 0, said
    assert "did not lower the held-out loss" in said.warnings[0]
    assert "Kept the weights as they were before training." in said.out
    before, after = (load(folder).state_dict() for folder in (shelf / "dense", files / "new"))
    assert all(bool((before[key] == after[key]).all()) for key in before)


def test_a_loss_that_diverges_leaves_no_output(shelf: Path, files: Path, refused: Refused) -> None:
    more = ["--set", "data=good.txt", "--set", "learning_rate=1.0e+30", "--quiet"]
    more += ["--set", "warmup=0", "--set", "checkpoint_every=1", "--out", "new"]
    refused(["recover", shelf / "dense", *NEXT, *more], "the training loss is nan at step")


def test_tokens_are_those_of_the_text(
    shelf: Path, files: Path, mobilekit: Callable[..., Said]
) -> None:
    said = mobilekit("tokens", "good.txt", "good.txt", "--tokenizer", shelf / "dense",
                     "--out", "new.npy", "--json")  # fmt: skip
    assert said.code == 0, said
    ids = np.load(files / "new.npy")
    whole = [*TEXT.encode()]
    alphabet: Any = load_ids(shelf / "dense")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [*(alphabet[b] for b in whole), 0, *(alphabet[b] for b in whole)]
    assert json.loads(said.out)["tokens"] == 2 * len(whole) + 1
    joined = mobilekit("tokens", "good.txt", "good.txt", "--tokenizer", shelf / "dense",
                       "--out", "joined.npy", "--no-separator")  # fmt: skip
    assert joined.code == 0
    assert len(np.load(files / "joined.npy")) == 2 * len(whole)


def load_ids(checkpoint: Path) -> dict[int, int]:
    """Return the id of every byte of the text, one encoded alone."""
    from mobilekit.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    return {byte: tokenizer.encode(chr(byte))[0] for byte in set(TEXT.encode())}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.txt", "--tokenizer", "MOE", "--out", "new.bin"], "a token file ends in .npy"),
        (["good.txt", "--tokenizer", "MOE", "--out", "good.npy"], "good.npy exists"),
        (["absent.txt", "--tokenizer", "MOE", "--out", "new.npy"], "does not exist"),
        (["latin.txt", "--tokenizer", "MOE", "--out", "new.npy"], "not UTF-8"),
        (["empty.txt", "--tokenizer", "MOE", "--out", "new.npy"], "is empty"),
        (["good.txt", "--tokenizer", "absent/there", "--out", "new.npy"], "does not exist"),
        (["good.txt", "--tokenizer", "MOE", "--out", "good.txt/new.npy"], "good.txt is a file"),
        (["--tokenizer", "MOE", "--out", "new.npy"], "missing argument"),
    ],
)
def test_tokens_that_cannot_be_written(
    arguments: list[str], words: str, shelf: Path, files: Path, refused: Refused
) -> None:
    given = [str(shelf / "moe") if a == "MOE" else a for a in arguments]
    refused(["tokens", *given, "--quiet"], words)
    assert "new.npy" not in listing(files)
