"""Installed packages beside the ranges that MobileKit's own metadata asks for."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mobilekit.core.errors import MissingDependencyError

CORE = "core"
# the exact versions that the tests of this release ran with; the ranges are pyproject.toml's own
TESTED = {
    "coremltools": "9.0",
    "executorch": "1.5.1",
    "huggingface-hub": "2.4.0",
    "jinja2": "3.1.6",
    "numpy": "2.4.6",
    "onnx": "1.23.2",
    "onnxruntime": "1.32.0",
    "onnxruntime-genai": "0.18.0",
    "onnxscript": "0.7.2",
    "optimum": "2.3.0",
    "packaging": "26.3",
    "pydantic": "2.14.4",
    "pyyaml": "6.0.4",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "scikit-learn": "1.9.1",
    "tokenizers": "0.23.3",
    "torch": "2.13.0",
    "torchao": "0.18.0",
    "transformers": "5.24.0",
    "typer": "0.29.2",
}

State = Literal["tested", "in range", "out of range", "missing"]


@dataclass(frozen=True)
class PackageRecord:
    """One requirement, and what is installed of it.

    Attributes:
        name: Distribution.
        part: "core", or the extra that asks for it.
        required: Version range, as the metadata says it.
        tested: Version that the tests ran with, or ``None``.
        installed: Version found, or ``None``.
        state: How the two fit.
    """

    name: str
    part: str
    required: str
    tested: str | None
    installed: str | None
    state: State


def requirements() -> list[tuple[str, Requirement]]:
    """Return (part, requirement) pairs from the installed metadata; development tools excepted.

    Raises:
        MissingDependencyError: If MobileKit itself is not installed, only lying there.
    """
    try:
        lines = importlib.metadata.requires("mobilekit") or []
        extras = importlib.metadata.metadata("mobilekit").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(
            "mobilekit is not installed here, so nothing says which versions it needs",
            hint="Install it: pip install -e '.[all]' in the checkout.",
        ) from None
    found = []
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) == "mobilekit":
            continue  # the extra `all` names others of ours
        parts = [CORE] if _applies(requirement, "") else [e for e in extras if e != "dev"]
        found += [(p, requirement) for p in parts if p == CORE or _applies(requirement, p)]
    return found


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def check_packages() -> list[PackageRecord]:
    """Return every requirement of the core and of the targets' extras, and how it is met."""
    return [_record(part, requirement) for part, requirement in requirements()]


def _record(part: str, requirement: Requirement) -> PackageRecord:
    name = canonicalize_name(requirement.name)
    tested = TESTED.get(name)
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    return PackageRecord(
        name=name,
        part=part,
        required=str(requirement.specifier) or "any",
        tested=tested,
        installed=installed,
        state=_state(requirement, installed, tested),
    )


def _state(requirement: Requirement, installed: str | None, tested: str | None) -> State:
    if installed is None:
        return "missing"
    if not requirement.specifier.contains(installed, prereleases=True):
        return "out of range"
    # a build of the same release, such as 2.13.0+cpu, is the release
    return "tested" if installed.partition("+")[0] == tested else "in range"
