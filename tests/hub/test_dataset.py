"""Questions from the hub: out of the local cache, or downloaded where the user says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilekit.core.errors import InvalidInputError, MissingDependencyError, UsageError
from mobilekit.evaluate.suites.mobile_mmlu import sources
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset

from .server import Commit, Hub, Repository

FULL, PRO = "MBZUAI-LLM/Mobile-MMLU", "MBZUAI-LLM/Mobile-MMLU-Pro"
VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
REVISION = "c" * 40


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    sources._from_hub.cache_clear()
    yield
    sources._from_hub.cache_clear()


@pytest.fixture
def datasets(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub with invented questions in the layout of the two published sets."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)
    full = {
        f"test/{file.name}": file.read_bytes()
        for file in (VECTORS / "fixture_full" / "test").glob("*.csv")
    }
    pro = {"mobile_mmlu_pro.csv": (VECTORS / "fixture_pro.csv").read_bytes()}
    other = {"README.md": b"# card", "picture.png": b"\x89PNG"}
    for name, files in ((FULL, full), (PRO, pro), ("someone/questions", full)):
        commits = [Commit("0" * 40, {}), Commit(REVISION, {**files, **other})]
        hub.repos[name] = Repository(False, commits)
    return hub


def test_an_id_alone_downloads_nothing(datasets: Hub) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_dataset(FULL)
    assert "neither a local path nor in the hub cache" in caught.value.message
    assert f"data=hf://{FULL}" in caught.value.hint
    assert datasets.requests == []


def test_a_download_is_announced_with_its_licence_and_kept_in_the_cache(
    datasets: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load_dataset(f"hf://{FULL}", VECTORS / "fixture_key.csv")
    said = capsys.readouterr().err
    assert "CC-BY-NC-ND-4.0: non-commercial, no-derivatives" in said
    local = load_dataset(VECTORS / "fixture_full")
    assert dataset.questions == local.questions
    record = dataset.record()
    assert record["name"] == "Mobile-MMLU"
    assert record["revision"] == REVISION
    assert record["terms"] == ["non-commercial", "no-derivatives"]
    assert record["licence"] == "CC-BY-NC-ND-4.0"
    assert not any("README" in one or "picture" in one for one in datasets.requests)
    datasets.requests.clear()
    again = load_dataset(FULL)  # from the cache, without a word to the hub
    assert (again.questions, again.revision) == (dataset.questions, REVISION)
    assert datasets.requests == []
    assert capsys.readouterr().err == ""


def test_one_process_asks_the_hub_once(datasets: Hub) -> None:
    load_dataset(f"hf://{FULL}")
    count = len(datasets.requests)
    load_dataset(f"hf://{FULL}")
    assert len(datasets.requests) == count


def test_pro_and_sets_of_others(datasets: Hub) -> None:
    pro = load_dataset(f"hf://{PRO}@{REVISION}").record()
    assert (pro["name"], pro["licence"]) == ("Mobile-MMLU-Pro", "CC-BY-ND-4.0")
    assert pro["terms"] == ["no-derivatives"]
    assert pro["is_mobile_mmlu"]
    assert (pro["questions"], pro["fields"]) == (6, 6)
    others = load_dataset("hf://someone/questions").record()
    assert (others["name"], others["licence"]) == ("hub:someone/questions", None)
    assert not others["is_mobile_mmlu"]


def test_a_hub_that_does_not_have_it_or_cannot_be_reached(
    datasets: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(UsageError, match="no repository someone/none"):
        load_dataset("hf://someone/none")
    with pytest.raises(UsageError, match="is not a repository of the hub"):
        load_dataset("hf://nobody")
    with pytest.raises(UsageError, match="no revision 'v9'"):
        load_dataset(f"hf://{FULL}@v9")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(MissingDependencyError, match="cannot be reached"):
            load_dataset(f"hf://{FULL}")


def test_a_path_that_is_not_there_is_no_download(datasets: Hub, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        load_dataset("data/questions")
    with pytest.raises(InvalidInputError, match="does not exist"):
        load_dataset(tmp_path / "none")
    assert datasets.requests == []
