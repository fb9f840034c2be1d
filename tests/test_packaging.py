"""The package list and package data say what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _settings() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    here = {
        ".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("mobilekit/**/__init__.py")
    }
    export = {p.parent.relative_to(ROOT).parts for p in ROOT.glob("export/**/__init__.py")}
    expected = here | {".".join(("mobilekit", *parts)) for parts in export}
    assert set(_settings()["packages"]) == expected  # type: ignore[call-overload]


def test_every_data_file_is_package_data() -> None:
    data = _settings()["package-data"]
    assert isinstance(data, dict)
    listed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = [p for p in ROOT.glob("mobilekit/**/*") if p.is_file() and p.suffix != ".py"]
    kept = {p for p in files if "__pycache__" not in p.parts}
    assert kept - listed == set()
