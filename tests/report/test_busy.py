"""A speed that was taken on a busy machine is told with what else ran."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest

from mobilekit import report
from mobilekit.report.busy import other_share
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]
SHIPPED = "executorch-xnnpack-int8"


def _parts(documents: Documents) -> dict[str, Any]:
    _, _, manifest, results = documents
    return {
        "manifest": Manifest.parse(manifest, "manifest"),
        "results": [Result.parse(one, "result") for one in results],
    }


def _words(documents: Documents) -> str:
    page = report.build(RunRecord.parse(documents[0], "run"), **_parts(documents))
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split()).replace("\u00a0", " ")


def _load(documents: Documents, name: str, **metrics: Any) -> Documents:
    for one in documents[3]:
        if one["artifact"]["id"] == name and one.get("samples"):
            one["metrics"] = {**one["metrics"], **metrics}
    return documents


def _other(share: float | None, resolution: float = 0.01, seconds: float = 2.0) -> dict[str, Any]:
    return {"cpu_share": share, "resolution": resolution, "seconds": seconds, "reason": None}


def test_a_busy_machine_takes_the_factor_out_of_the_headline(
    documents: Callable[[], Documents],
) -> None:
    idle = _words(_load(documents(), SHIPPED, other_work=_other(0.04)))
    assert re.search(r"[\d.]+× faster to decode than torch eager", idle)
    busy = _words(_load(documents(), SHIPPED, other_work=_other(0.43)))
    assert "faster to decode" not in busy
    assert re.search(
        r"decoding [\d ]+ tok/s before and [\d ]+ tok/s after while other work used 43 % of the "
        r"CPUs",
        busy,
    )
    assert f"While {SHIPPED} was timed, other work used 43 % of the CPUs" in busy


def test_several_busy_models_are_named_with_their_shares(
    documents: Callable[[], Documents],
) -> None:
    found = _load(documents(), SHIPPED, other_work=_other(0.43))
    found = _load(found, "onnx-cpu-int8", other_work=_other(0.2))
    found = _load(found, "before", other_work=_other(0.01))
    words = _words(found)
    assert "at worst other work used 43 % of the CPUs" in words
    assert f"by model: {SHIPPED} 43 %, onnx-cpu-int8 20 %." in words


def test_a_share_that_ticks_could_make_up_is_no_disturbance(
    documents: Callable[[], Documents],
) -> None:
    found = _load(documents(), SHIPPED, other_work=_other(0.3, resolution=0.25))
    assert "busy machine" not in _words(found)


def test_waiting_tells_where_the_counters_are_too_coarse(
    documents: Callable[[], Documents],
) -> None:
    coarse = {"other_work": _other(0.5, resolution=0.5), "processor_wait_share": 0.31}
    words = _words(_load(documents(), SHIPPED, **coarse))
    assert "it waited 31 % of the time for a processor" in words
    assert "faster to decode" not in words


def test_the_card_and_the_command_line_say_it_too(documents: Callable[[], Documents]) -> None:
    found = _load(documents(), SHIPPED, other_work=_other(0.43))
    card = report.build_card(RunRecord.parse(found[0], "run"), **_parts(found))
    assert "faster to decode" not in card
    assert "while other work used 43" in card.partition("| File size")[2]


def test_the_comparison_says_it(
    invented_run: Any, documents: Callable[[], Documents], tmp_path: Any
) -> None:
    import json

    for path in (invented_run / "results").glob("*.json"):
        data = json.loads(path.read_text())
        if data["artifact"]["id"] == SHIPPED and data["samples"]:
            data["metrics"]["other_work"] = _other(0.43)
            path.write_text(json.dumps(data))
    table = report.comparison(invented_run)
    row = next(row for row in table.rows if row[0] == "Decode speed")
    assert row[3].endswith("(while other work used 43\u00a0% of the CPUs)")
    assert "43\u00a0%" in table.data["figures"]["decode"]["note"]


def test_runs_are_pooled_by_their_time(documents: Callable[[], Documents]) -> None:
    base = next(one for one in documents()[3] if one.get("samples"))
    records = [_other(0.1, 0.02, 1.0), _other(0.4, 0.005, 3.0), _other(None), None]
    results = [Result.parse({**base, "metrics": {"other_work": r}}, "result") for r in records]
    assert other_share(results) == pytest.approx(((0.1 + 1.2) / 4, (0.02 + 0.015) / 4))
    assert other_share(results[2:]) is None


def test_what_could_not_be_counted_says_why(documents: Callable[[], Documents]) -> None:
    missing = {**_other(None), "reason": "the system has no readable /proc/stat"}
    words = _words(_load(documents(), SHIPPED, other_work=missing))
    assert "the system has no readable /proc/stat" in words
