"""A directory that is written in several goes."""

from pathlib import Path

import pytest

from mobilekit.core.errors import OutputError, UsageError
from mobilekit.models.staging import resumable_directory


def write(target: Path, job: str, names: str, fail: BaseException | None = None) -> list[str]:
    """Write files, then fail if asked to; return what was there before."""
    with resumable_directory(target, job) as folder:
        found = sorted(path.name for path in folder.iterdir() if path.name != ".job")
        for name in names:
            (folder / name).write_text(name)
        (folder / ".half").write_text("half")
        if fail is not None:
            raise fail
        (folder / ".half").unlink()
    return found


@pytest.mark.parametrize("fail", [KeyboardInterrupt(), OSError("no"), SystemExit(1)])
def test_what_is_finished_outlives_any_stop(tmp_path: Path, fail: BaseException) -> None:
    target = tmp_path / "deep" / "new"
    with pytest.raises(type(fail)):
        write(target, "1", "ab", fail)
    assert not target.exists()
    assert write(target, "1", "c") == ["a", "b"]
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "c"]
    assert [path.name for path in target.parent.iterdir()] == ["new"]


def test_nothing_stays_where_nothing_was_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", "1", "", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_another_job_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", "1", "ab", KeyboardInterrupt())
    (tmp_path / ".new.partial" / "folder").mkdir()
    assert write(tmp_path / "new", "2", "c") == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c"]


def test_an_empty_target_is_replaced_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write(tmp_path / "new", "1", "a")
    with pytest.raises(UsageError, match="not empty"):
        write(tmp_path / "new", "1", "a")
    assert (tmp_path / "new" / "a").read_text() == "a"


def test_two_at_once(tmp_path: Path) -> None:
    with (
        resumable_directory(tmp_path / "new", "1") as folder,
        pytest.raises(UsageError, match="another process is writing"),
        resumable_directory(tmp_path / "new", "1"),
    ):
        pass
    assert not folder.exists()


def test_a_target_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        write(tmp_path / "file" / "new", "1", "a")
