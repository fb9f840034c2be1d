"""Task files for lm-eval over the user's own copy, to hold our letters against its own.

They hold question text, and so are written only where the user asks for them, for use there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_directory, atomic_write
from mobilekit.evaluate.config import MobileMMLUConfig

from .dataset import QuestionSet, limited, load_dataset
from .fields import categories
from .prompt import CLOZE_VERSION, LOGLIK_VERSION, cloze_prompt, loglik_prompt
from .questions import LETTERS, Question

__all__ = ["write_lm_eval_task"]

_METRICS = {"loglik": ["acc"], "cloze": ["acc", "acc_norm", "acc_bytes"]}


def write_lm_eval_task(config: MobileMMLUConfig, out: str | Path) -> str:
    """Write a group of lm-eval tasks, one a category, and their questions as JSON lines.

    The group's accuracy is the micro average over all questions. Prompts are stored whole, so
    that no loader's idea of types ("None", "007", a date) can change one. Run it with
    ``lm-eval run --include_path OUT --tasks GROUP``.

    Args:
        config: Data, key, scorer ("loglik" or "cloze"), limit and seed.
        out: Directory to create.

    Returns:
        Name of the group.

    Raises:
        InvalidInputError: If there is no key, which lm-eval cannot do without, or the scorer has
            no such task.
    """
    if config.scorer not in _METRICS or config.rotations != 1:
        raise InvalidInputError(
            f"an lm-eval task was asked for with scorer '{config.scorer}', {config.rotations} "
            "order(s) of options",
            hint="It can be written for scorer 'loglik' or 'cloze', with rotations 1.",
        )
    dataset = limited(load_dataset(config.data, config.key), config.limit, seed=config.seed)
    if dataset.key is None:
        raise InvalidInputError(
            "an lm-eval task needs an answer key", hint="Give one: --set key=KEY.csv"
        )
    missing = sum(question.id not in dataset.key for question in dataset.questions)
    if missing:
        raise InvalidInputError(
            f"the key has no answer to {missing} of {len(dataset.questions)} questions",
            hint="lm-eval scores every question that it asks: give a whole key.",
        )
    group = _slug(dataset.name.removeprefix("local:").removeprefix("hub:"))
    with atomic_directory(Path(out)) as fresh:
        tasks = _write_tasks(dataset, config.scorer, group, fresh, Path(out).resolve())
        aggregate = [{"metric": m, "weight_by_size": True} for m in _METRICS[config.scorer]]
        _write_yaml(
            fresh / f"_{group}.yaml",
            {"group": group, "task": tasks, "aggregate_metric_list": aggregate},
        )
    return group


def _write_tasks(
    dataset: QuestionSet, scorer: str, group: str, folder: Path, final: Path
) -> list[str]:
    names = []
    for category in categories():
        questions = [q for q in dataset.questions if q.field.category == category]
        if not questions:
            continue
        name = f"{group}_{_slug(category)}"
        rows = [_row(one, scorer, str((dataset.key or {})[one.id])) for one in questions]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        atomic_write(folder / f"{name}.jsonl", text)
        _write_yaml(folder / f"{name}.yaml", _task(name, scorer, final / f"{name}.jsonl"))
        names.append(name)
    return names


def _row(question: Question, scorer: str, answer: str) -> dict[str, Any]:
    prompt = loglik_prompt(question) if scorer == "loglik" else cloze_prompt(question)
    choices: Sequence[str] = LETTERS if scorer == "loglik" else question.options
    return {
        "question_id": f"id:{question.id}",  # never a number or a date to a loader
        "prompt": prompt.text,
        "choices": list(choices),
        "answer": LETTERS.index(answer),
    }


def _task(name: str, scorer: str, data: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": list(LETTERS) if scorer == "loglik" else "choices",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in _METRICS[scorer]
        ],
        "metadata": {"version": LOGLIK_VERSION if scorer == "loglik" else CLOZE_VERSION},
    }


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    atomic_write(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_") or "questions"
