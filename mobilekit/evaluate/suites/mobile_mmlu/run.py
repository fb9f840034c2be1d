"""Ask a model the questions and score its letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import sha256_json
from mobilekit.core.suggest import did_you_mean
from mobilekit.data.tokenizer import TextTokenizer, wrap_tokenizer
from mobilekit.evaluate.config import MobileMMLUConfig
from mobilekit.evaluate.outcome import Control, Outcome, Progress, Suite
from mobilekit.runtime.base import TokenLogits
from mobilekit.schema.result import Sample, Workload

from .answers import Answer, Ask, Scorer
from .cloze import ClozeScorer, cloze_metrics
from .dataset import QuestionSet, limited, load_dataset
from .generate import GenerateScorer
from .loglik import LoglikScorer
from .orders import IN_FILE_ORDER, orders
from .resume import answer_log
from .robustness import order_metrics
from .score import score

__all__ = ["SUITE", "mobile_mmlu"]

SCORERS: dict[str, Callable[[TokenLogits, TextTokenizer], Scorer]] = {
    "cloze": ClozeScorer,
    "generate": GenerateScorer,
    "loglik": LoglikScorer,
}
_DIGITS = 9  # of a stored log-probability: more than float32 has


def mobile_mmlu(
    runtime: TokenLogits,
    tokenizer: Any,
    data: str | Path = "sample",
    *,
    key: str | Path | None = None,
    scorer: str = "loglik",
    rotations: int = 1,
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
        data: "sample", the folder or CSV file of a local copy, or a data set of the hub.
        key: Answer key ``question_id,answer``; the sample has its own.
        scorer: "loglik", "generate" or "cloze".
        rotations: Orders of the options to ask in: 1, 4 or 24.
        limit: At most so many questions, each field in proportion.
        seed: Which questions a limit picks.
        progress: Called after every presentation of a question.
        resume_file: JSON lines; answers found there are not asked again.
        model_id: Checksum of what runs, so that a resumed run cannot mix two models.

    Returns:
        Metrics, letters by id, and the nanoseconds of each presentation; no question text.

    Raises:
        UsageError: If the scorer is unknown.
        InvalidInputError: If a setting, the data, the key, the tokenizer or the resume file is
            unusable.
    """
    if scorer not in SCORERS:
        raise UsageError(
            f"unknown scorer '{scorer}'{did_you_mean(scorer, SCORERS)}",
            hint=f"Known scorers: {', '.join(sorted(SCORERS))}.",
        )
    paths = {"data": str(data), "key": None if key is None else str(key)}
    given = {"scorer": scorer, "rotations": rotations, "limit": limit, "seed": seed, **paths}
    config = MobileMMLUConfig.parse(given, "suite mobile_mmlu")
    control = Control(progress, resume_file, model_id)
    return _run(runtime, wrap_tokenizer(tokenizer), config, control)


def _run(
    runtime: TokenLogits, tokenizer: TextTokenizer, config: MobileMMLUConfig, control: Control
) -> Outcome:
    dataset = limited(load_dataset(config.data, config.key), config.limit, seed=config.seed)
    for what, count in dataset.record()["warnings"].items():
        console.warn(f"{dataset.name}: {count} with {what.replace('_', ' ')}, asked all the same")
    scorer = SCORERS[config.scorer](runtime, tokenizer)
    asks = [
        Ask(question, order) for question in dataset.questions for order in orders(config.rotations)
    ]
    identity = {
        **_settings(config, scorer),
        "data": dataset.sha256,
        "ids": [question.id for question in dataset.questions],
        "model": control.model_id,
        "runtime": [runtime.name, runtime.version, runtime.context_length, runtime.vocab_size],
        "tokenizer": tokenizer.sha256(),
    }
    answers = _ask(scorer, asks, identity, control)
    metrics = {
        "suite": "mobile_mmlu",
        "scorer": config.scorer,
        "prompt_version": scorer.prompt_version,
        "dataset": dataset.record(),
        **_metrics(dataset, answers, config),
        **scorer.record(),
    }
    return Outcome(
        workload=_workload(dataset, answers, _settings(config, scorer), runtime),
        metrics=metrics,
        samples=tuple(
            Sample(phase="question", repetition=index, tokens=max(1, one.tokens), ns=one.ns)
            for index, one in enumerate(answers)
        ),
        letters={one.id: one.letter for one in answers if one.order == IN_FILE_ORDER},
    )


def _settings(config: MobileMMLUConfig, scorer: Scorer) -> dict[str, Any]:
    return {
        "scorer": config.scorer,
        "prompt_version": scorer.prompt_version,
        "rotations": config.rotations,
        "limit": config.limit,
        "seed": config.seed,
    }


def _ask(
    scorer: Scorer, asks: Sequence[Ask], identity: dict[str, Any], control: Control
) -> list[Answer]:
    """Ask all that the log does not hold; return the answers in the order of ``asks``."""
    with answer_log(control.resume_file, identity) as log:
        left = [ask for ask in asks if (ask.question.id, ask.order) not in log.answers]
        if control.progress is not None and len(left) < len(asks):
            control.progress(len(asks) - len(left), "resumed")
        for answer in scorer.answers(left):
            log.add(answer)
            if control.progress is not None:
                control.progress(1)
        return [log.answers[ask.question.id, ask.order] for ask in asks]


def _metrics(
    dataset: QuestionSet, answers: Sequence[Answer], config: MobileMMLUConfig
) -> dict[str, Any]:
    plain = [answer for answer in answers if answer.order == IN_FILE_ORDER]
    cloze = {"cloze": cloze_metrics(dataset, plain)} if config.scorer == "cloze" else {}
    has_logprobs = config.scorer != "generate"
    return {
        **score(dataset, plain),
        **cloze,
        "order": order_metrics(answers, dataset.key, config.rotations),
        "logprobs": {one.id: _rounded(one) for one in plain} if has_logprobs else {},
    }


def _rounded(answer: Answer) -> list[float] | None:
    if answer.logprobs is None:
        return None
    return [float(f"{value:.{_DIGITS}g}") for value in answer.logprobs]


def _workload(
    dataset: QuestionSet, answers: Sequence[Answer], settings: dict[str, Any], runtime: TokenLogits
) -> Workload:
    return Workload(
        id=dataset.name,
        prompt_tokens=sum(one.tokens for one in answers),
        repetitions=len(answers),
        settings={**settings, "context_length": runtime.context_length},
    )


def _size(config: MobileMMLUConfig) -> int:
    questions = limited(load_dataset(config.data, config.key), config.limit).questions
    return len(questions) * config.rotations


def _digest(config: MobileMMLUConfig) -> str:
    dataset = load_dataset(config.data, config.key)
    return sha256_json([dataset.sha256, sorted((dataset.key or {}).items())])


SUITE: Suite[MobileMMLUConfig] = Suite(run=_run, size=_size, digest=_digest)
