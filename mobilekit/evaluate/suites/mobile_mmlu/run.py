"""Ask a model the questions and score its letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilekit.core.errors import UsageError
from mobilekit.core.files import sha256_json
from mobilekit.core.suggest import did_you_mean
from mobilekit.data.tokenizer import TextTokenizer, wrap_tokenizer
from mobilekit.evaluate.config import MobileMMLUConfig
from mobilekit.evaluate.outcome import Control, Outcome, Progress, Suite
from mobilekit.runtime.base import TokenLogits
from mobilekit.schema.result import Sample, Workload

from .dataset import QuestionSet, limited, load_dataset
from .loglik import Answer, LoglikScorer
from .prompt import PROMPT_VERSION
from .resume import answer_log
from .score import score

__all__ = ["SUITE", "mobile_mmlu"]

SCORERS = {"loglik": LoglikScorer}
_DIGITS = 9  # of a stored log-probability: more than float32 has


def mobile_mmlu(
    runtime: TokenLogits,
    tokenizer: Any,
    data: str | Path = "sample",
    *,
    key: str | Path | None = None,
    scorer: str = "loglik",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resume_file: Path | None = None,
    model_id: str = "",
) -> Outcome:
    """Ask the questions of a local copy, or of the sample, and score the letters.

    Args:
        runtime: A checkpoint or an artifact, opened by ``mobilekit.runtime``.
        tokenizer: What ``mobilekit.data.tokenizer`` loads or wraps.
        data: "sample", or the folder or CSV file of a local copy.
        key: Answer key ``question_id,answer``; the sample has its own.
        scorer: "loglik".
        limit: At most so many questions, each field in proportion.
        seed: Which questions a limit picks.
        progress: Called after every question.
        resume_file: JSON lines; answers found there are not asked again.
        model_id: Checksum of what runs, so that a resumed run cannot mix two models.

    Returns:
        Metrics, letters by id, and the nanoseconds of each question; no question text.

    Raises:
        UsageError: If the scorer is unknown.
        InvalidInputError: If the data, the key, the tokenizer or the resume file is unusable.
    """
    if scorer not in SCORERS:
        raise UsageError(
            f"unknown scorer '{scorer}'{did_you_mean(scorer, SCORERS)}",
            hint=f"Known scorers: {', '.join(sorted(SCORERS))}.",
        )
    dataset = limited(load_dataset(data, key), limit, seed=seed)
    text_tokenizer = wrap_tokenizer(tokenizer)
    asking = SCORERS[scorer](runtime, text_tokenizer)
    settings = {"scorer": scorer, "limit": limit, "seed": seed}
    identity = _identity(runtime, dataset, settings, model_id)
    identity["tokenizer"] = text_tokenizer.sha256()
    answers: list[Answer] = []
    with answer_log(resume_file, identity) as log:
        for question in dataset.questions:
            if question.id not in log.answers:
                log.add(asking.answer(question))
            answers.append(log.answers[question.id])
            if progress is not None:
                progress(1)
    return _outcome(dataset, answers, asking, settings)


def _identity(
    runtime: TokenLogits, dataset: QuestionSet, settings: dict[str, Any], model_id: str
) -> dict[str, Any]:
    return {
        **settings,
        "prompt": PROMPT_VERSION,
        "data": dataset.sha256,
        "ids": [question.id for question in dataset.questions],
        "model": model_id,
        "runtime": [runtime.name, runtime.version, runtime.context_length, runtime.vocab_size],
    }


def _outcome(
    dataset: QuestionSet, answers: list[Answer], scorer: LoglikScorer, settings: dict[str, Any]
) -> Outcome:
    metrics = {
        "suite": "mobile_mmlu",
        "scorer": settings["scorer"],
        "dataset": dataset.record(),
        **score(dataset, answers),
        "letter_tokens": scorer.letters.record(),
        "logprobs": {one.id: _rounded(one) for one in answers},
    }
    samples = tuple(
        Sample(phase="question", repetition=index, tokens=max(1, one.tokens), ns=one.ns)
        for index, one in enumerate(answers)
    )
    return Outcome(
        workload=Workload(
            id=dataset.name,
            prompt_tokens=sum(one.tokens for one in answers),
            repetitions=len(answers),
            settings={**settings, "context_length": scorer.runtime.context_length},
        ),
        metrics=metrics,
        samples=samples,
        letters={one.id: one.letter for one in answers},
    )


def _rounded(answer: Answer) -> list[float] | None:
    if answer.logprobs is None:
        return None
    return [float(f"{value:.{_DIGITS}g}") for value in answer.logprobs]


def _run(
    runtime: TokenLogits, tokenizer: TextTokenizer, config: MobileMMLUConfig, control: Control
) -> Outcome:
    return mobile_mmlu(
        runtime,
        tokenizer,
        config.data,
        key=config.key,
        scorer=config.scorer,
        limit=config.limit,
        seed=config.seed,
        progress=control.progress,
        resume_file=control.resume_file,
        model_id=control.model_id,
    )


def _size(config: MobileMMLUConfig) -> int:
    return len(limited(load_dataset(config.data, config.key), config.limit).questions)


def _digest(config: MobileMMLUConfig) -> str:
    dataset = load_dataset(config.data, config.key)
    return sha256_json([dataset.sha256, sorted((dataset.key or {}).items())])


SUITE: Suite[MobileMMLUConfig] = Suite(run=_run, size=_size, digest=_digest)
