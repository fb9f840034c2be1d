"""The rooms import only what the architecture allows, and nothing heavy where it must be light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EVERY = {
    *("core", "schema", "data", "metrics", "models", "runtime", "train", "compress", "export"),
    *("evaluate", "profile", "report", "recipe", "recipes", "pipeline", "cli", "doctor", "hub"),
}
# room -> rooms of ours that it may import; the table of the architecture
ALLOWED = {
    "core": set(),
    "schema": {"core"},
    "data": {"core"},
    "metrics": {"core"},
    "models": {"core", "schema"},
    "runtime": {"core", "schema", "models"},
    "train": {"core", "data", "metrics", "models"},
    "compress": {"core", "schema", "data", "metrics", "models", "train"},
    # data: the prompts of the parity vectors are cut from the embedded held-out text
    "export": {"core", "schema", "data", "models", "runtime", "metrics"},
    "evaluate": {"core", "schema", "data", "metrics", "models", "runtime"},
    "profile": {"core", "schema", "runtime", "evaluate"},
    "report": {"core", "schema", "metrics"},
    "doctor": {"core", "export", "profile"},
    "hub": {"core", "schema", "report"},
    "recipe": EVERY,
    "recipes": set(),
    "pipeline": EVERY,
    "cli": EVERY,
}
# folders of compress/ that are no methods, but what methods share
INSTRUMENTS = {"evolution", "obs"}  # what several methods share


def _modules() -> list[tuple[str, Path]]:
    found = []
    for base, prefix in ((ROOT / "mobilekit", "mobilekit"), (ROOT / "export", "mobilekit.export")):
        for path in sorted(base.rglob("*.py")):
            parts = [*prefix.split("."), *path.relative_to(base).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append((name, path))
    return found


def _imports(name: str, path: Path) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            module = node.module or ""
            full = ".".join(p for p in (base, module) if p) if node.level else module
            found.update(f"{full}.{alias.name}" for alias in node.names)
    return found


def _room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "mobilekit" and len(parts) > 1 else None


@pytest.mark.parametrize(("name", "path"), _modules(), ids=lambda value: str(value)[-40:])
def test_room_imports_only_what_the_table_names(name: str, path: Path) -> None:
    room = _room(name)
    if room is None or room in ("__main__",):
        return
    assert room in ALLOWED, f"{name} is in no room of the table"
    used = {_room(target) for target in _imports(name, path)} - {None, room, "__version__"}
    assert used <= ALLOWED[room], f"{name} imports {sorted(used - ALLOWED[room])}"


def test_no_import_cycles_between_rooms() -> None:
    seen: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for name, path in _modules():
        room = _room(name)
        if room in seen:
            rooms = {_room(target) for target in _imports(name, path)}
            seen[room] |= {r for r in rooms if r in seen and r != room}

    def reaches(start: str, goal: str, visited: set[str]) -> bool:
        for step in seen[start] - visited:
            if step == goal or reaches(step, goal, visited | {step}):
                return True
        return False

    assert [room for room in seen if reaches(room, room, set())] == []


def test_methods_never_import_one_another() -> None:
    for name, path in _modules():
        parts = name.split(".")
        if parts[:2] == ["mobilekit", "compress"] and len(parts) > 3:
            others = [t for t in _imports(name, path) if t.startswith("mobilekit.compress.")]
            folders = {
                t.split(".")[2]
                for t in others
                if (ROOT / "mobilekit/compress").joinpath(t.split(".")[2]).is_dir()
            }
            assert folders <= {parts[2]} | INSTRUMENTS, name


def _loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import mobilekit",
        "from mobilekit.cli.main import build_app; build_app()",
        "import mobilekit.schema.plan, mobilekit.schema.bundle, mobilekit.schema.result",
        "import mobilekit.runtime, mobilekit.evaluate, mobilekit.profile, mobilekit.report",
        "import mobilekit.doctor, mobilekit.hub",
        "import mobilekit.compress.aimer.config",
        "import mobilekit.compress.evolution",
    ],
)
def test_nothing_heavy_is_imported_where_it_is_not_used(code: str) -> None:
    heavy = {"torch", "transformers", "executorch", "onnxruntime", "coremltools", "diffusers"}
    assert not heavy & _loaded_after(code)
