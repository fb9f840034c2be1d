from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.core.errors import InvalidInputError, OutputError, UsageError
from mobilekit.core.files import (
    atomic_directory,
    atomic_write,
    atomic_write_json,
    check_target,
    read_json,
    safe_join,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sha256_tree,
    unserialized,
)


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b.txt", "text")
    assert (tmp_path / "a" / "b.txt").read_text() == "text"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    atomic_write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        atomic_write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


def test_atomic_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as fresh:
        (fresh / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_directory_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "out") as fresh:
            (fresh / "file").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_atomic_directory_refuses_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("x")
    with pytest.raises(UsageError, match="not empty"), atomic_directory(tmp_path / "out"):
        pass
    with atomic_directory(tmp_path / "out", replace=True) as fresh:
        (fresh / "new").write_text("y")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]


def test_a_parent_that_is_a_file_is_a_two_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as caught, atomic_directory(tmp_path / "file" / "out"):
        pass
    assert len(str(caught.value).splitlines()) == 2


def test_a_full_disk_is_a_two_line_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    from mobilekit.core.files import writing

    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - closed below
    with full, pytest.raises(OutputError, match="no space left"), writing(Path("out")):
        os.write(full.fileno(), b"x")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "", "c:\\x", "a\\..\\b", "C:x"]
)
def test_paths_that_leave_the_root_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="leaves the directory"):
        safe_join(tmp_path, path)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidInputError):
        safe_join(tmp_path / "root", "link/secret")


@given(st.lists(st.text(alphabet="abc._-", min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_joined_path_is_inside_or_refused(parts: list[str]) -> None:
    root = Path("/somewhere/root")
    try:
        joined = safe_join(root, "/".join(parts))
    except InvalidInputError:
        assert ".." in parts
    else:
        assert joined.resolve().is_relative_to(root)


@given(st.binary(max_size=64))
def test_sha256_is_hashlibs(data: bytes) -> None:
    import hashlib

    assert sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_hashes_see_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = sha256_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, sha256_tree(tmp_path)}) == 3
    assert sha256_file(tmp_path / "b") == sha256_bytes(b"2")


def test_what_another_process_wrote_meanwhile_stays(tmp_path: Path) -> None:
    def raced() -> None:
        with atomic_directory(tmp_path / "out") as fresh:
            (fresh / "mine").write_text("1")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("2")

    with pytest.raises(UsageError, match="another process"):
        raced()
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert left == ["out", "out/theirs"]


def test_json_hash_ignores_key_order() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json(json.loads('{"b":[2],"a":1}'))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\x00", ""])
def test_broken_json_is_a_two_line_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="not valid JSON"):
        read_json(path)


def test_a_json_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" + "1," * 100 + "1]")
    with pytest.raises(InvalidInputError, match="larger"):
        read_json(path, max_bytes=10)


def test_what_a_block_reads_or_prints_is_not_called_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        (tmp_path / "input").read_text()
    with pytest.raises(BrokenPipeError), atomic_directory(tmp_path / "out"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_name_that_is_too_long_is_a_two_line_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        check_target(tmp_path / ("x" * 254))


def test_trying_whether_a_place_is_writable_leaves_nothing(tmp_path: Path) -> None:
    check_target(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_has_no_words_of_the_serializer() -> None:
    raw = "Error while serializing: I/O error: No space left on device (os error 28)"
    error = unserialized(Path("out"), RuntimeError(raw))
    assert error.message == "cannot write out: no space left on device"
    assert unserialized(Path("out"), RuntimeError("odd\nthing")).message.endswith("odd thing")
