"""How good a model is, asked of the artifact that ships: perplexity and four-option questions.

``run_on`` opens a checkpoint or an artifact and does what a recipe says, ``run`` takes an open
runtime; ``perplexity`` and ``mobile_mmlu`` are the suites as functions. ``rescore`` scores letters
that came back from a device, ``compare`` tests two results against each other, ``published`` and
``published_on`` give the figures of others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core import console
from mobilekit.core.registry import Registry
from mobilekit.schema.result import ArtifactRef, Result

from .artifacts import cannot_run, make_config, make_configs, run_on, summary_line, targets_of
from .comparison import compare, comparison_line
from .config import MobileMMLUConfig, PerplexityConfig, SuiteConfig
from .outcome import Control, Outcome, Suite
from .reference import published, published_on
from .rescoring import read_result, rescore
from .submission import write_submission

if TYPE_CHECKING:
    from mobilekit.runtime.base import TokenLogits

SUITES: Registry[Suite[Any]] = Registry("suite")
SUITES.register("mobile_mmlu", "mobilekit.evaluate.suites.mobile_mmlu.run:SUITE")
SUITES.register("perplexity", "mobilekit.evaluate.suites.perplexity:SUITE")


def run(
    runtime: TokenLogits,
    tokenizer: Any,
    config: SuiteConfig,
    *,
    artifact: ArtifactRef,
    device: dict[str, Any],
    resume_file: Path | None = None,
) -> Result:
    """Run one suite on one checkpoint or artifact.

    Args:
        runtime: What runs the model, opened by ``mobilekit.runtime``.
        tokenizer: What ``mobilekit.data.tokenizer`` loads or wraps.
        config: Which suite, with its settings.
        artifact: Id and checksum of what runs.
        device: What it runs on; has at least "class".
        resume_file: Where the question suites keep answers, so that a run can go on.

    Returns:
        A result of kind "evaluate": figures, chosen letters, raw samples, no question text.

    Raises:
        UsageError: If the suite is unknown or a setting does not fit the artifact.
        InvalidInputError: If data, tokenizer or resume file are unusable.
    """
    from mobilekit.data.tokenizer import wrap_tokenizer

    suite = SUITES.get(config.suite)
    text_tokenizer = wrap_tokenizer(tokenizer)
    with console.progress(suite.size(config), f"{config.suite} {artifact.id}") as bar:
        control = Control(bar.advance, resume_file, artifact.sha256)
        outcome = suite.run(runtime, text_tokenizer, config, control)
    return Result(
        kind="evaluate",
        device=device,
        runtime={"name": runtime.name, "version": runtime.version},
        artifact=artifact,
        workload=outcome.workload,
        samples=outcome.samples,
        metrics=outcome.metrics,
        letters=outcome.letters,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def data_digest(config: SuiteConfig) -> str:
    """Return the SHA-256 over the content of all data that a suite reads.

    Raises:
        InvalidInputError: If the data is missing or unusable.
    """
    return SUITES.get(config.suite).digest(config)


def at_shared_window(
    config: SuiteConfig, checkpoint: str | Path, context_length: int
) -> SuiteConfig:
    """Return the settings with a window that every compared model can hold.

    Perplexities are comparable at one window only, and artifacts may hold less than a checkpoint.

    Raises:
        UsageError: If the settings ask for a window that the context cannot hold.
    """
    if not isinstance(config, PerplexityConfig):
        return config
    from mobilekit.data.tokenizer import load_tokenizer

    from .suites.perplexity import shared_window

    window = shared_window(config, load_tokenizer(checkpoint), context_length)
    return config.model_copy(update={"window": window})


def perplexity(runtime: TokenLogits, tokenizer: Any, text: str, **settings: Any) -> dict[str, Any]:
    """Perplexity of a text; see :func:`mobilekit.evaluate.suites.perplexity.perplexity`."""
    from .suites.perplexity import perplexity as measure

    return measure(runtime, tokenizer, text, **settings)


def mobile_mmlu(
    runtime: TokenLogits, tokenizer: Any, data: str | Path = "sample", **settings: Any
) -> Outcome:
    """Four-option questions; see :func:`mobilekit.evaluate.suites.mobile_mmlu.run.mobile_mmlu`."""
    from .suites.mobile_mmlu.run import mobile_mmlu as ask

    return ask(runtime, tokenizer, data, **settings)


def write_lm_eval_task(config: MobileMMLUConfig, out: str | Path) -> str:
    """Write lm-eval tasks over the user's own questions; their text is in them.

    See :func:`mobilekit.evaluate.suites.mobile_mmlu.lm_eval_task.write_lm_eval_task`.
    """
    from .suites.mobile_mmlu.lm_eval_task import write_lm_eval_task as write

    return write(config, out)


__all__ = [
    "SUITES",
    "MobileMMLUConfig",
    "SuiteConfig",
    "at_shared_window",
    "cannot_run",
    "compare",
    "comparison_line",
    "data_digest",
    "make_config",
    "make_configs",
    "mobile_mmlu",
    "perplexity",
    "published",
    "published_on",
    "read_result",
    "rescore",
    "run",
    "run_on",
    "summary_line",
    "targets_of",
    "write_lm_eval_task",
    "write_submission",
]
