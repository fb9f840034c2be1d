"""File to file, interrupted: it goes on at the file, and believes nothing that changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import mobilekit as mk
from mobilekit.compress.aimer import scan
from mobilekit.compress.stored import (
    compress_stored,
    plan_stored,
)
from mobilekit.models import rewrite

from .on_disk import check_same, through_memory

pytestmark = pytest.mark.usefixtures("own_cache")


def counted(monkeypatch: pytest.MonkeyPatch, room: Any, attribute: str) -> list[str]:
    """Count the calls of a function that takes a file."""
    real, calls = getattr(room, attribute), []

    def call(*given: Any, **options: Any) -> Any:
        calls.append(
            next(part.name for part in given if getattr(part, "suffix", "") == ".safetensors")
        )
        return real(*given, **options)

    monkeypatch.setattr(room, attribute, call)
    return calls


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_plan_goes_on_at_the_file(
    sharded: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = len(list(sharded.glob("*.safetensors")))
    monkeypatch.setattr(scan, "_MOST_READERS", 1)  # one file after the other
    real, done = scan.scan_file, []

    def interrupted(*given: Any) -> Any:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(given)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "scan_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan_stored(sharded, "aimer")
    calls = counted(monkeypatch, scan, "scan_file")
    plan = plan_stored(sharded, "aimer")
    assert len(calls) == files - after
    assert plan == mk.plan(mk.load(sharded, device="cpu"), "aimer")
    plan_stored(sharded, "aimer", variant="random", sparsity=0.5)
    assert len(calls) == files - after  # what was read is known


def test_a_file_that_changed_is_read_again(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_stored(sharded, "aimer")
    file = next(
        f
        for f in sorted(sharded.glob("*.safetensors"))
        if any("experts" in n for n in load_file(f))
    )
    state = file.stat()
    changed = {name: tensor * 3 for name, tensor in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # only the change time tells
    calls = counted(monkeypatch, scan, "scan_file")
    after = plan_stored(sharded, "aimer")
    assert calls == [file.name]
    assert after.parent != before.parent
    assert after == mk.plan(mk.load(sharded, device="cpu"), "aimer")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 3}', None])
def test_a_damaged_record_is_not_believed(sharded: Path, own_cache: Path, text: str | None) -> None:
    expected = plan_stored(sharded, "aimer")
    for record in (own_cache / "scans").rglob("*.json"):
        data = json.loads(record.read_text())
        data["sums"] = dict.fromkeys(data["sums"], "none")
        record.write_text(json.dumps(data) if text is None else text)
    assert plan_stored(sharded, "aimer") == expected


STOPS: dict[str, Callable[[Any], Any]] = {
    "a shard": lambda patch: patch.setattr(rewrite, "_blocks", failing(rewrite._blocks, 12)),
    "companions": lambda patch: patch.setattr(rewrite, "_write_companions", failing(None, 0)),
    "index": lambda patch: patch.setattr(rewrite, "_write_index", failing(None, 0)),
    "plan": lambda patch: patch.setattr(rewrite, "atomic_write_json", failing(None, 0)),
    "rename": lambda patch: patch.setattr("mobilekit.models.staging.os.rename", failing(None, 0)),
}


def failing(real: Any, after: int) -> Any:
    calls: list[int] = []

    def call(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*given, **options)

    return call


@pytest.mark.parametrize("stop", STOPS)
def test_an_interrupted_compression_goes_on_at_the_file(
    sharded: Path, stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress_stored(sharded, tmp_path / "expected", method="aimer", sparsity=0.5)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        STOPS[stop](patch)
        with pytest.raises(KeyboardInterrupt):
            compress_stored(sharded, out, method="aimer", sparsity=0.5)
    assert not out.exists()
    partial = tmp_path / ".out.partial"
    whole = {path.name: path.stat().st_ino for path in partial.glob("model*.safetensors")}
    assert whole
    calls = counted(monkeypatch, rewrite, "_write_shard")
    compress_stored(sharded, out, method="aimer", sparsity=0.5)
    assert not partial.exists()
    assert not whole.keys() & set(calls)
    assert {name: (out / name).stat().st_ino for name in whole} == whole
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("out", "expected")
    )
    assert found == expected


def test_other_settings_do_not_go_on_with_old_files(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": "aimer", "sparsity": 0.5}
    with monkeypatch.context() as patch:
        STOPS["index"](patch)
        with pytest.raises(KeyboardInterrupt):
            compress_stored(sharded, tmp_path / "out", variant="random", **settings)
    compress_stored(sharded, tmp_path / "out", method="aimer", variant="magnitude", sparsity=0.5)
    through_memory(sharded, tmp_path / "memory", variant="magnitude", sparsity=0.5)
    check_same(tmp_path / "out", tmp_path / "memory")
