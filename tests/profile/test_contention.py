from __future__ import annotations

from pathlib import Path

import pytest

from mobilekit.profile.meters.contention import waited_ns


def test_the_second_counter_is_the_waiting(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("123456 789 42\n")
    assert waited_ns(tmp_path) == 789


@pytest.mark.parametrize("text", [None, "", "1 2", "1 x 3"])
def test_a_system_that_does_not_count_gives_null(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "schedstat").write_text(text)
    assert waited_ns(tmp_path) is None
