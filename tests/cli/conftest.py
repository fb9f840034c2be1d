"""Checkpoints, plans, recipes and bundles as users break them, and the command line to try them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mobilekit.cli.main import main
from mobilekit.core import console

Refused = Callable[..., None]
AIMER = ["--method", "aimer"]
ONNX = ["--target", "onnx", "--precision", "fp32", "--context-length", "64", "--quiet"]
TRAIN = ["--set", "objective=[next_token]", "--set", "tokens=1000"]


@dataclass(frozen=True)
class Said:
    """How a command ended: its exit code, its stdout, its stderr without and with the warnings."""

    code: int
    out: str
    lines: tuple[str, ...]
    warnings: tuple[str, ...]

    def check_refusal(self, code: int, *words: str) -> None:
        """Check that it says what is wrong and what to do, in two lines, and nothing else."""
        assert self.code == code, self
        assert self.out == ""
        assert len(self.lines) == 2, self.lines
        assert self.lines[0].startswith("error: ")
        assert not self.lines[0].startswith("error: internal")
        assert self.lines[1].strip()
        for word in words:
            assert word in "\n".join(self.lines)


def listing(folder: Path) -> list[str]:
    """Return every path under a folder; none may appear that a refused command leaves."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def split(code: int, out: str, err: str) -> Said:
    found = err.splitlines()
    warnings = tuple(line for line in found if line.startswith("warning: "))
    return Said(code, out, tuple(line for line in found if line not in warnings), warnings)


@pytest.fixture
def mobilekit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """Run the entry point in this process, in an empty directory; output of any library counts."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr("sys.argv", ["mobilekit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return split(code or 0, *capfd.readouterr())

    yield run
    console.configure()


@pytest.fixture
def refused(mobilekit: Callable[..., Said], tmp_path: Path) -> Refused:
    """Run a command that must be refused: two lines, the exit code, no new file, no output."""

    def check(arguments: list[str | Path], *words: str, code: int = 2) -> None:
        before = listing(tmp_path)
        mobilekit(*arguments).check_refusal(code, *words)
        assert listing(tmp_path) == before

    return check


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def write_recipe(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({"version": 1, "export": None, **content}))  # JSON is YAML
    return path


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def write_checkpoint(model: nn.Module, tokenizer: Path, out: Path) -> Path:
    copy.deepcopy(model).save_pretrained(out)  # type: ignore[operator]
    shutil.copytree(tokenizer, out, dirs_exist_ok=True)
    return out


@pytest.fixture(scope="session")
def shelf(
    tiny_qwen3: nn.Module,
    tiny_qwen3_moe: nn.Module,
    byte_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A directory of good and damaged checkpoints, for reading only."""
    root = tmp_path_factory.mktemp("shelf")
    write_checkpoint(tiny_qwen3, byte_tokenizer, root / "dense")
    moe = write_checkpoint(tiny_qwen3_moe, byte_tokenizer, root / "moe")

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(moe, root / name))

    (damaged("weightless") / "model.safetensors").unlink()
    weights = damaged("truncated") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    pickled = damaged("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    edit_json(damaged("mismatched") / "config.json", lambda c: c.update(hidden_size=32))
    foreign = {"architectures": ["GPT2LMHeadModel"]}
    edit_json(damaged("foreign") / "config.json", lambda c: c.update(foreign))
    edit_json(damaged("greedy") / "config.json", lambda c: c.update(num_experts_per_tok=99))
    edit_json(damaged("choosy") / "config.json", lambda c: c.update(num_experts_per_tok=0))
    (damaged("configless") / "config.json").unlink()
    untokenized = damaged("untokenized")
    for file in byte_tokenizer.iterdir():
        (untokenized / file.name).unlink()
    (damaged("mistokenized") / "tokenizer.json").write_text('{"model":')
    weights = damaged("nan") / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    return root


@pytest.fixture(scope="session")
def good_bundle(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle with one artifact and a context of 64."""
    from mobilekit import export

    out = tmp_path_factory.mktemp("exported") / "bundle"
    export.build(shelf / "dense", out, targets=["onnx"], precisions=["fp32"], context_length=64)
    return out


@pytest.fixture
def bundle(good_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle to break, outside of the directory that must stay unchanged."""
    return Path(shutil.copytree(good_bundle, tmp_path_factory.mktemp("broken") / "bundle"))


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB: a plan fits, no checkpoint does."""
    yield from mounted(tmp_path / "disk", "size=256k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "ro,size=1m")
