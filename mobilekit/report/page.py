"""Put the page and the model card together, and write both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mobilekit.core.files import atomic_write
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import Plan
from mobilekit.schema.result import Result
from mobilekit.schema.run import RunRecord

from .attribution import attribution
from .card import card
from .changes import Changes, changes
from .comparison import Comparison, compare_figures
from .evidence import Evidence, by_device, read_evidence
from .headline import headline
from .markdown import escape_markdown
from .numbers import moment
from .published import published
from .quality import quality
from .questions import questions
from .speed import speed
from .subjects import subjects
from .trust import trust

REPORT_FILE = "report.html"
CARD_FILE = "model_card.md"

_SECTIONS = (
    ("compare", "Before and after"),
    ("quality", "Quality"),
    ("questions", "Questions"),
    ("done", "What was done"),
    ("experts", "Experts"),
    ("levels", "Levels"),
    ("parity", "Parity"),
    ("latency", "Latency"),
    ("memory", "Memory"),
    ("energy", "Energy"),
    ("provenance", "Provenance"),
    ("limits", "Limits"),
)


def build(
    run: RunRecord,
    *,
    plans: Sequence[Plan] = (),
    manifest: Manifest | None = None,
    results: Sequence[Result] = (),
) -> str:
    """Return the report as one HTML page that loads nothing.

    Args:
        run: The record of the run.
        plans: The plans applied to the checkpoint, in order; none where nothing was compressed.
        manifest: The bundle's manifest, or None before the export.
        results: Profiling and evaluation results; none before those steps.

    Returns:
        The page. Every string in it that came from outside is escaped.
    """
    evidence = Evidence(run, tuple(plans), manifest, tuple(results))
    return render_environment().get_template("report.html.j2").render(**_views(evidence))


def build_card(
    run: RunRecord,
    *,
    plans: Sequence[Plan] = (),
    manifest: Manifest | None = None,
    results: Sequence[Result] = (),
    base_model: str | None = None,
) -> str:
    """Return the model card as Markdown.

    Args:
        run: As for `build`, like the others.
        plans: Plans.
        manifest: Manifest.
        results: Results.
        base_model: Hub id of the source; the recipe's own where ``None``, if it names one.
    """
    evidence = Evidence(run, tuple(plans), manifest, tuple(results))
    template = render_environment().get_template("model_card.md.j2")
    return template.render(**_views(evidence), card=card(evidence, base_model))


def write(run_dir: Path) -> Path:
    """Write ``report.html`` and ``model_card.md`` into a run directory, each whole or not at all.

    Returns:
        The path of the page.

    Raises:
        InvalidInputError: If ``run.json`` is missing or a document of the run is malformed.
        OutputError: If the directory cannot be written.
    """
    found = read_evidence(Path(run_dir))
    parts: dict[str, Any] = {
        "plans": found.plans,
        "manifest": found.manifest,
        "results": found.results,
    }
    page, card = build(found.run, **parts), build_card(found.run, **parts)
    atomic_write(Path(run_dir) / CARD_FILE, card)
    target = Path(run_dir) / REPORT_FILE
    atomic_write(target, page)
    return target


def comparison(run_dir: Path) -> Comparison:
    """Return the before/after table of a run, as the command line prints it.

    Raises:
        InvalidInputError: If ``run.json`` is missing or a document of the run is malformed.
    """
    first = next(iter(by_device(read_evidence(Path(run_dir))).values()))
    return compare_figures(headline(first, subjects(first)))


def _views(evidence: Evidence) -> dict[str, Any]:
    """Return what the templates show; every chart is marked as safe, nothing else is."""
    devices = by_device(evidence)
    first = next(iter(devices.values()))
    found = subjects(first)
    done = changes(evidence)
    return {
        "run": evidence.run,
        "manifest": evidence.manifest,
        "head": headline(first, found),
        "speeds": [speed(subjects(part), name) for name, part in devices.items()],
        "quality": quality(found),
        "questions": questions(found),
        "published": published(evidence.run, found),
        "parts": attribution(first, found),
        "changes": done,
        "trust": trust(evidence, subjects(evidence)),
        "sections": _sections(done),
        "css": Markup((Path(__file__).parent / "templates" / "style.css").read_text("utf-8")),
    }


def _sections(done: Changes) -> list[tuple[str, str]]:
    """Return the sections that have a place on the page: levels only where a plan chose some."""
    has_levels = any(item.levels for item in done.methods)
    has_experts = any(item.heatmap for item in done.methods)
    hidden = set() if has_levels else {"levels"}
    if has_levels and not has_experts:
        hidden.add("experts")
    return [section for section in _SECTIONS if section[0] not in hidden]


def render_environment() -> Environment:
    """Return what renders the templates: everything from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("mobilekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["moment"] = moment
    return environment
