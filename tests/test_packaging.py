"""The package list and package data say what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "optimum.commands.register"  # a namespace that several distributions share


def _settings() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    here = {
        ".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("mobilekit/**/__init__.py")
    }
    export = {p.parent.relative_to(ROOT).parts for p in ROOT.glob("export/**/__init__.py")}
    expected = here | {".".join(("mobilekit", *parts)) for parts in export} | {REGISTRY}
    assert set(_settings()["packages"]) == expected  # type: ignore[call-overload]


def test_optimums_namespace_gets_one_file_and_stays_a_namespace() -> None:
    folders = _settings()["package-dir"]
    assert isinstance(folders, dict)
    shipped = ROOT / folders[REGISTRY]
    assert [path.name for path in shipped.glob("*.py")] == ["register_mobilekit.py"]


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
