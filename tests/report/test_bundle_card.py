"""The card of a bundle: measured figures only from the run that made it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mobilekit.core.errors import UsageError
from mobilekit.report import bundle_card
from mobilekit.schema.bundle import Bundle, open_bundle

from .pruned import darwin_plan

REPO = "someone/bundle"


def test_with_its_run_the_card_has_measured_figures(invented_run: Path) -> None:
    bundle = open_bundle(invented_run / "bundle")
    card = bundle_card(bundle, REPO, run=invented_run, base_model="someone/base")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "someone/base"
    assert front["license"] == "other"
    assert front["license_name"] == "psf-2.0"
    assert front["tags"] == ["mobilekit", "aimer", "mlpackage", "onnx", "pte"]
    assert "\n| Held-out perplexity | 23.8 | 24.6 |" in card
    assert "### Artifacts" in card


def test_without_a_run_it_has_none(invented_run: Path) -> None:
    card = bundle_card(open_bundle(invented_run / "bundle"), REPO)
    assert "perplexity" not in card.lower()
    assert "no figure is given" in card
    assert "base_model" not in card
    for name in ("executorch-xnnpack-fp32", "coreml-cpu-int8"):
        assert card.count(f"| {name} |") == 2  # storage and parity
    assert "not executed" in card


def test_another_run_is_refused(invented_run: Path) -> None:
    bundle = open_bundle(invented_run / "bundle")
    other = Bundle(bundle.root, bundle.manifest.model_copy(update={"licences": ("mit",)}))
    with pytest.raises(UsageError, match="made another bundle"):
        bundle_card(other, REPO, run=invented_run)


def test_the_source_of_the_recipe_is_the_base_model(invented_run: Path) -> None:
    run = invented_run / "run.json"
    run.write_text(run.read_text().replace('"embedded",\n', '"someone/base",\n', 1))
    card = bundle_card(open_bundle(invented_run / "bundle"), REPO, run=invented_run)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "someone/base"


def test_it_says_what_each_plan_took_away(invented_run: Path) -> None:
    bundle = open_bundle(invented_run / "bundle")
    plans = (darwin_plan(), {"method": "of a later version"})
    manifest = bundle.manifest.model_copy(update={"plans": plans})
    card = bundle_card(Bundle(bundle.root, manifest), REPO)
    assert "\n\nCompressed by **darwinlm**.\n\n- parameters: 40.0 M → 25.0" in card
    assert "\n- MLP removed whole: in 1 of 8 layers: layer 3\n\n" in card
    assert "\n\nCompressed by **of a later version**.\n\n## Artifacts" in card
