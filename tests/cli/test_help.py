from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobilekit.cli.common import parse_settings
from mobilekit.cli.main import COMMANDS
from mobilekit.core.errors import UsageError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mobilekit", *arguments], capture_output=True, text=True, cwd=cwd
    )


def test_help_names_every_command_in_full_sentences() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name}" in done.stdout
    assert "..." not in done.stdout.split("Commands:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_page_ends_with_two_examples(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    examples = " ".join(done.stdout[done.stdout.index("Examples:") :].split())
    assert examples.count("mobilekit") >= 1
    assert "·" in examples


def test_a_misspelt_command_is_suggested() -> None:
    done = run("exprot")
    assert done.returncode == 2
    assert "Did you mean 'export'" in done.stderr


def test_init_writes_a_recipe_and_does_not_overwrite(tmp_path: Path) -> None:
    assert run("init", cwd=tmp_path).returncode == 0
    assert "version: 1" in (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text("mine")
    again = run("init", cwd=tmp_path)
    assert again.returncode == 2
    assert len(again.stderr.strip().splitlines()) == 2
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_json_is_one_document() -> None:
    done = run("methods", "--json")
    assert [entry["name"] for entry in json.loads(done.stdout)] == ["aimer", "darwinlm"]


def test_methods_says_what_a_method_does() -> None:
    aimer, darwinlm = json.loads(run("methods", "--json").stdout)
    assert aimer["summary"].startswith("Remove the experts")
    assert darwinlm["summary"].startswith("Remove query heads")


def test_methods_says_what_each_variant_needs() -> None:
    from mobilekit.compress.aimer.config import VARIANTS

    shown = run("methods", "aimer").stdout
    needs = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.split()}
    assert {name: needs[name] for name in VARIANTS} == {
        **dict.fromkeys(("aimer", "random", "magnitude"), "none"),
        **dict.fromkeys(("frequency", "seer"), "routing"),
        **dict.fromkeys(("ean", "reap", "man", "msan"), "activations"),
    }
    schema = json.loads(run("methods", "aimer", "--json").stdout)
    assert {name: entry["needs"] for name, entry in schema["variants"].items()} == {
        name: info.needs for name, info in VARIANTS.items()
    }
    assert "calibration_tokens" in schema["properties"]


def test_version() -> None:
    import mobilekit

    assert run("--version").stdout.strip() == f"mobilekit {mobilekit.__version__}"


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("a=0.25", 0.25),
        ("a=true", True),
        ("a=[x, y]", ["x", "y"]),
        ("a=text", "text"),
        ("a=", None),
        ("a=x=y", "x=y"),
        ("some-key=1", 1),
    ],
)
def test_settings_are_yaml_scalars(pair: str, value: object) -> None:
    assert list(parse_settings([pair]).values()) == [value]


@pytest.mark.parametrize("pair", ["a", "=1", "a=[", ""])
def test_a_wrong_setting_is_explained(pair: str) -> None:
    with pytest.raises(UsageError):
        parse_settings([pair])


def test_devices_lists_the_host_without_an_internal_error() -> None:
    done = run("devices")
    assert done.returncode == 0, done.stderr
    assert "host" in done.stdout
    assert json.loads(run("devices", "--json").stdout)[0]["name"] == "host"
