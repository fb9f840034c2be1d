"""The page as a whole: self-contained, escaped, valid, honest about what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilekit import report
from mobilekit.core.errors import InvalidInputError
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import Plan
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

from .checked import check_page

Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]


def _words(page: str) -> str:
    return " ".join(" ".join(check_page(page).text).split())


def _build(documents: Documents) -> str:
    record, plan, manifest, results = documents
    return report.build(RunRecord.parse(record, "run"), **_parts(plan, manifest, results))


def _card(documents: Documents) -> str:
    record, plan, manifest, results = documents
    return report.build_card(RunRecord.parse(record, "run"), **_parts(plan, manifest, results))


def _parts(plan: Any, manifest: Any, results: Any) -> dict[str, Any]:
    return {
        "plans": [Plan.parse(plan, "plan")] if plan else [],
        "manifest": Manifest.parse(manifest, "manifest") if manifest else None,
        "results": [Result.parse(result, "result") for result in results],
    }


def test_write_leaves_a_page_and_a_card(invented_run: Path) -> None:
    before = {path for path in invented_run.rglob("*") if path.is_file()}
    target = report.write(invented_run)
    after = {path for path in invented_run.rglob("*") if path.is_file()}
    assert target == invented_run / "report.html"
    assert after - before == {target, invented_run / "model_card.md"}


def test_page_is_valid_and_loads_nothing(invented_run: Path) -> None:
    page = report.write(invented_run).read_text("utf-8")
    found = check_page(page)
    assert page.startswith("<!doctype html>")
    assert all(reference.startswith("#") for reference in found.references)
    assert {r[1:] for r in found.references} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name space, never fetched
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", page)
    assert "default-src 'none'" in page


def test_page_shows_every_part(documents: Callable[[], Documents]) -> None:
    page = _build(documents())
    words = _words(page)
    for wanted in (
        "2.5× smaller",
        "executorch-xnnpack-int8",
        "3.40 MB",
        "from 8.42 MB",
        "1 min 11 s",
        "5 of 6",
        "the evaluator lacks the operator 'invented_op'",
        "no powercap interface",
        "VmHWM",
        "mobilekit run recipe.yaml --out runs/invented",
        "sparsity: 0.25",
        "executorch 1.5.1",
        "is not the Mobile-MMLU benchmark",
        "Host figures are not phone figures",
    ):
        assert wanted in words.replace("\u00a0", " "), wanted
    kinds = ("bars", "scatter", "intervals", "curve", "heatmap", "strips")
    assert all(f'class="chart {kind}"' in page for kind in kinds)
    assert page.count('class="cell ') == 64
    assert page.count('class="gone"/>') == 16


def test_energy_has_no_figure_where_it_is_unavailable(documents: Callable[[], Documents]) -> None:
    page = _build(documents())
    section = page[page.index('id="energy"') : page.index('id="provenance"')]
    assert "unavailable" in section
    assert not re.search(r"\d[\d.]*\s*(J|mJ|W)\b", section)


def test_devices_never_share_a_chart_or_a_table(documents: Callable[[], Documents]) -> None:
    record, plan, manifest, results = documents()
    phone = {"class": "android", "model": "Invented Phone"}
    slower = [
        {**r, "device": phone} for r in results if r["kind"] == "profile" and r["metrics"] == {}
    ]
    for result in slower:
        result["memory"] = {**result["memory"], "counter": "Pss"}
    page = _build((record, plan, manifest, results + slower))
    check_page(page)
    memory = page[page.index('id="memory"') : page.index('id="energy"')]
    host, other = memory.split("<h3>android, Invented Phone</h3>")
    assert ("VmHWM" in host, "Pss" in host) == (True, False)
    assert ("VmHWM" in other, "Pss" in other) == (False, True)
    assert "Decode speed · android, Invented Phone" in page
    assert _words(page).count("VmHWM") > 0
    assert "Measured on host-x86_64, Invented CPU ; the other devices" in _words(page)


def test_measured_and_modelled_energy_stand_in_columns_apart(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    profiles = [r for r in results if r["kind"] == "profile" and r.get("energy")]
    profiles[0]["energy"] = {"status": "measured", "joules": 2.5, "source": "rapl:package-0"}
    profiles[1]["energy"] = {"status": "modelled", "joules": 0.25, "source": "model:mac-byte:1"}
    page = _build((record, plan, manifest, results))
    section = page[page.index('id="energy"') : page.index('id="provenance"')]
    assert re.search(r'data-label="Measured"[^>]*>2\.50 J', section)
    assert re.search(r'data-label="Modelled"[^>]*>0\.250 J', section)
    assert not re.search(r'data-label="Measured"[^>]*>0\.250', section)


EVIL = "<script>alert(1)</script>\"'&`|*"


def _poison(documents: Documents) -> Documents:
    """Put markup into every place that takes free text."""
    record, plan, manifest, results = documents
    record["command"] = record["host"]["cpu"] = record["steps"][0]["detail"] = EVIL
    record["models"]["before"]["class"] = record["models"]["before"]["hash"] = EVIL
    record["recipe"][EVIL] = {EVIL: [EVIL]}
    record["versions"][EVIL] = EVIL
    plan.update(method=EVIL, warnings=[EVIL], config={EVIL: EVIL})
    plan["summary"][EVIL] = EVIL
    plan["scores"]["criterion"] = EVIL
    manifest["model"]["name"] = EVIL
    manifest["licences"] = [EVIL]
    manifest["provenance"] = {EVIL: EVIL}
    manifest["artifacts"][5]["parity"]["reason"] = EVIL
    manifest["artifacts"][4]["backend"] = EVIL
    manifest["artifacts"][4]["files"][0]["path"] = EVIL
    for result in results:
        result["device"]["cpu"] = EVIL
        if result.get("energy"):
            result["energy"]["reason"] = result["memory"]["counter"] = EVIL
        if "categories" in result["metrics"]:
            result["workload"]["id"] = EVIL
            categories = result["metrics"]["categories"]
            categories[EVIL] = categories.pop("Environment")
    return record, plan, manifest, results


def test_markup_in_any_text_stays_text(documents: Callable[[], Documents]) -> None:
    page = _build(_poison(documents()))
    found = check_page(page)
    assert found.tags.count("script") == 1
    assert "<script>alert" not in page
    assert sum("<script>alert(1)</script>" in text for text in found.text) > 15


def test_markup_in_the_card_stays_text(documents: Callable[[], Documents]) -> None:
    card = _card(_poison(documents()))
    outside = re.sub(r"^(`{3,})sh\n.*?\n\1$", "", card, flags=re.S | re.M)
    assert "<script" not in outside
    assert outside != card  # the command stands literally, inside a fence
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert rows
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.M):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(cells)) == 1, block


@pytest.mark.parametrize("missing", ["plan", "manifest", "results", "all"])
def test_missing_parts_are_sentences(documents: Callable[[], Documents], missing: str) -> None:
    record, plan, manifest, results = documents()
    if missing in ("plan", "all"):
        plan = {}
    if missing in ("manifest", "all"):
        manifest = {}
    if missing in ("results", "all"):
        results = []
    if missing == "all":
        kept = ("schema", "mobilekit", "created", "command")
        record = {key: record[key] for key in kept}
    words = _words(_build((record, plan, manifest, results)))
    sentences = {
        "plan": ["No compression plan was recorded", "No experts were scored"],
        "manifest": ["There is no bundle to check yet", "No artifact has been exported yet"],
        "results": ["No evaluation has been run yet", "No latency has been profiled yet"],
        "all": ["No step has finished yet", "No sizes were recorded", "No energy status"],
    }
    for sentence in sentences[missing]:
        assert sentence in words
    assert "None" not in re.findall(r"\bNone\b(?! is)", words)
    assert "nan" not in re.findall(r"\bnan\b", words)
    assert "Licence" in _card((record, plan, manifest, results))


def test_null_figures_of_results_are_no_figures(documents: Callable[[], Documents]) -> None:
    record, plan, manifest, results = documents()
    for result in results:
        if result["kind"] == "evaluate":
            result["metrics"] = {"accuracy": None, "interval": None, "n": 0, "perplexity": None}
        elif result.get("memory"):
            result["memory"] = {
                "counter": "VmHWM",
                "peak_bytes": None,
                "baseline_bytes": None,
                "reason": "no VmHWM in the process status",
            }
    words = _words(_build((record, plan, manifest, results)))
    assert "No perplexity was measured yet" in words
    assert "no VmHWM in the process status" in words


def test_the_headline_takes_the_smallest_verified_artifact(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    manifest["artifacts"][1]["parity"]["passed"] = False
    manifest["artifacts"][1]["parity"]["first_diverging_layer"] = "layers.2.mlp"
    words = _words(_build((record, plan, manifest, results)))
    assert "After means onnx-cpu-int8" in words
    assert "first diverging layer: layers.2.mlp" in words
    assert "4 of 6 1 outside tolerance 1 not executed" in words


def test_edits_of_the_plan_decide_which_experts_are_crossed(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    plan["edits"] = [{"op": "keep", "unit": "expert", "layer": 2, "indices": [0, 1, 2]}]
    page = _build((record, plan, manifest, results))
    assert page.count('class="gone"/>') == 13
    assert "layer 2 · 3 of 16 kept" in page


def test_sample_set_is_never_called_mobile_mmlu(documents: Callable[[], Documents]) -> None:
    for text in (_build(documents()), _card(documents())):
        allowed = text.replace("is not the Mobile-MMLU benchmark", "")
        assert "mobile-mmlu" not in allowed.lower()


def test_card_names_licence_and_measured_table(documents: Callable[[], Documents]) -> None:
    card = _card(documents())
    assert card.startswith('---\nlicense: "other"\nlicense_name: "psf-2.0"\n')
    assert "## Licence\n\n- PSF-2.0\n" in card
    assert "\n| Held-out perplexity | 23.8 | 24.6 |" in card
    assert "## Limits" in card


def test_comparison_is_the_table_of_the_command_line(invented_run: Path) -> None:
    table = report.comparison(invented_run)
    assert table.data["after"] == "executorch-xnnpack-int8"
    figures = table.data["figures"]
    assert figures["size"] == {
        "before": 8_424_192,
        "after": 3_402_118,
        "verdict": "better",
        "note": "",
    }
    assert all(len(row) == len(table.headers) for row in table.rows)
    rows = {row[0]: row for row in table.rows}
    assert rows["File size"] == ("File size", "8.42\u00a0MB", "3.40\u00a0MB", "−59.6\u00a0%")


def test_a_damaged_result_is_refused_and_nothing_is_written(invented_run: Path) -> None:
    (invented_run / "results/00.json").write_text('{"schema": "mobilekit.result/1", "kind": "x"}')
    with pytest.raises(InvalidInputError, match=r"results/00\.json"):
        report.write(invented_run)
    assert not (invented_run / "report.html").exists()


def test_other_records_among_the_results_are_no_results(invented_run: Path) -> None:
    (invented_run / "results/recovery.json").write_text('{"tokens": 1, "seconds": 2.0}')
    assert report.write(invented_run).is_file()


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a run directory"):
        report.write(tmp_path)


def test_estimated_and_measured_peaks_stand_in_columns_apart(
    documents: Callable[[], Documents],
) -> None:
    record, plan, manifest, results = documents()
    for step in record["steps"]:
        step["estimated_peak_bytes"] = 1_230_000_000
    manifest["artifacts"][0]["settings"] = {
        "lowering": {
            "seconds": 61.0,
            "cached": False,
            "worker_peak_rss_bytes": 701_000_000,
            "estimated_worker_peak_bytes": 822_000_000,
        }
    }
    page = _build((record, plan, manifest, results))
    for text in ("Peak RSS, measured", "Peak RSS, estimated"):
        assert page.count(text) >= 2
    for figure in ("910\u00a0MB", "1.23\u00a0GB", "701\u00a0MB", "822\u00a0MB"):
        assert figure in page
