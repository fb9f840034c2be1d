"""Push and pull against a hub that speaks HTTP on loopback, through the hub's own client."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilekit.core.errors import InvalidInputError, MissingDependencyError, UsageError
from mobilekit.core.hub import Repo, parse_repo
from mobilekit.hub import pull, push

from .conftest import contents, write_bundle
from .server import TOKEN, Hub

REPO = "someone/tiny-bundle"
LARGE_FILE = "onnx-cpu-fp32/model.onnx"


@pytest.fixture
def access(hub: Hub) -> dict[str, str]:
    return {"endpoint": hub.address, "token": TOKEN}


def test_what_is_pushed_comes_back_byte_for_byte(
    hub: Hub, access: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    done = push(bundle, REPO, private=True, **access)
    assert hub.repos[REPO].private
    assert done.commit == hub.repos[REPO].commits[-1].sha
    there = dict(hub.files(REPO))
    assert there.pop("README.md")
    assert there == contents(bundle)
    assert list(hub.large.values()) == [there[LARGE_FILE]]
    pulled = pull(f"hf://{REPO}", tmp_path / "pulled", **access)
    here = contents(pulled.root)
    assert here.pop("README.md") == hub.files(REPO)["README.md"]
    assert here == contents(bundle)


def test_the_card_says_what_it_is(hub: Hub, access: dict[str, str], bundle: Path) -> None:
    push(bundle, REPO, base_model="someone/base", **access)
    text = hub.files(REPO)["README.md"].decode()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "license": "apache-2.0",
        "library_name": "mobilekit",
        "pipeline_tag": "text-generation",
        "base_model": "someone/base",
        "tags": ["mobilekit", "onnx"],
    }
    assert "| onnx-cpu-fp32 | fp32 | 100 % | 20.0 kB |" in text
    assert f"mobilekit pull {REPO} --out bundle" in text
    assert "not measured" in text


def test_a_second_push_replaces_the_first(
    hub: Hub, access: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    first = push(bundle, REPO, **access)
    large = (bundle / LARGE_FILE).read_bytes()
    smaller = write_bundle(tmp_path / "smaller", {"onnx-cpu-fp32": large})
    push(smaller, REPO, **access)
    assert hub.written_large == 1  # the same content is not sent again
    assert set(hub.files(REPO)) == {*contents(smaller), "README.md"}
    old = pull(f"{REPO}@{first.commit}", tmp_path / "old", **access)
    assert [a.id for a in old.manifest.artifacts] == ["onnx-cpu-fp32", "onnx-cpu-tiny"]


def test_a_bundle_with_a_changed_byte_is_not_pushed(
    hub: Hub, access: dict[str, str], bundle: Path
) -> None:
    data = bytearray((bundle / LARGE_FILE).read_bytes())
    data[0] ^= 1
    (bundle / LARGE_FILE).write_bytes(data)
    with pytest.raises(InvalidInputError, match="has changed"):
        push(bundle, REPO, **access)
    assert hub.requests == []


def damage(files: dict[str, bytes]) -> None:
    files[LARGE_FILE] = files[LARGE_FILE][:-1] + b"?"


def lose(files: dict[str, bytes]) -> None:
    del files["onnx-cpu-tiny/model.onnx"]


def escape(files: dict[str, bytes]) -> None:
    manifest = json.loads(files["manifest.json"])
    manifest["tokenizer"][0]["path"] = "../../outside"
    files["manifest.json"] = json.dumps(manifest).encode()


def strip(files: dict[str, bytes]) -> None:
    del files["manifest.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage, f"{REPO}: {LARGE_FILE} has changed"),
        (lose, f"{REPO}: onnx-cpu-tiny/model.onnx is missing from the bundle"),
        (escape, "leaves the directory"),
        (strip, f"{REPO} does not hold a bundle"),
    ],
)
def test_what_arrives_wrong_is_not_kept(
    change: Any, message: str, hub: Hub, access: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    push(bundle, REPO, **access)
    change(hub.files(REPO))
    before = set(tmp_path.iterdir())
    with pytest.raises(InvalidInputError, match=message):
        pull(REPO, tmp_path / "pulled", **access)
    assert set(tmp_path.iterdir()) == before


def test_who_may_not(hub: Hub, access: dict[str, str], bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no access token"):
        push(bundle, REPO, endpoint=hub.address)
    with pytest.raises(UsageError, match="refuses access .* 401"):
        push(bundle, REPO, endpoint=hub.address, token="hf_another")
    push(bundle, REPO, private=True, **access)
    with pytest.raises(UsageError, match="no repository .* or it is private"):
        pull(REPO, tmp_path / "pulled", endpoint=hub.address)


def test_what_is_not_there(hub: Hub, access: dict[str, str], bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no repository someone/else"):
        pull("someone/else", tmp_path / "pulled", **access)
    push(bundle, REPO, **access)
    with pytest.raises(UsageError, match="has no revision 'v9'"):
        pull(f"{REPO}@v9", tmp_path / "pulled", **access)
    with pytest.raises(UsageError, match="has no revision 'v9'"):
        push(bundle, f"{REPO}@v9", **access)


def test_no_hub_is_said_at_once(bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refuses every connection
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for attempt in (
            lambda: push(bundle, REPO, endpoint=address, token=TOKEN),
            lambda: pull(REPO, tmp_path / "pulled", endpoint=address, token=TOKEN),
        ):
            with pytest.raises(MissingDependencyError, match="cannot be reached") as caught:
                attempt()
            assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("a/b", Repo("a/b")),
        ("hf://a/b.c-d@v1", Repo("a/b.c-d", "v1")),
        ("a/b@refs/pr/1", Repo("a/b", "refs/pr/1")),
    ],
)
def test_a_repository_by_name(text: str, repo: Repo) -> None:
    assert parse_repo(text) == repo


@pytest.mark.parametrize("text", ["a", "a/b/c", "a/", "/b", "a/..", "https://x/a/b", "a/b@", ""])
def test_what_names_no_repository(text: str) -> None:
    with pytest.raises(UsageError, match="is not a repository"):
        parse_repo(text)


def test_the_commands(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}

    def run(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mobilekit", *map(str, arguments)]
        environment = {**clean, **settings, **more}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    refused = run("push", bundle, REPO, "--quiet")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 2
    pushed = run(
        "push",
        shutil.make_archive(str(tmp_path / "b"), "zip", bundle),
        REPO,
        "--json",
        HF_TOKEN=TOKEN,
    )
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["repo"] == REPO
    pulled = run("pull", REPO, "--out", tmp_path / "new")
    assert pulled.returncode == 0, pulled.stderr
    assert "onnx-cpu-tiny" in pulled.stdout
    again = run("pull", REPO, "--out", tmp_path / "new")
    assert again.returncode == 2
    assert "is not empty" in again.stderr
