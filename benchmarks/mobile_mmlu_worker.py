"""One side of ``mobile_mmlu_throughput.py``: loads, warms up, answers everything once, and ends.

    python mobile_mmlu_worker.py JOB.json     # prints one JSON line

The time is that of all prompts, from text to log-probabilities of the four letters.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

from mobilekit import runtime
from mobilekit.core.memory import peak_rss_bytes, reset_peak_rss
from mobilekit.data.tokenizer import load_tokenizer
from mobilekit.metrics.language import log_softmax
from mobilekit.runtime import RUNTIMES, TokenLogits
from mobilekit.runtime.prompts import prompt_logits

Job = dict[str, Any]
Answers = list[list[float]]  # natural-log probabilities of A to D, by prompt
LETTERS = (" A", " B", " C", " D")
SHAPES = ((1, 128), (1, 256), (1, 512), (1, 1024), (2, 256), (4, 256), (8, 256), (16, 128))


def open_runtime(job: Job) -> TokenLogits:
    """Open the checkpoint or the artifact."""
    if job["kind"] == "torch":
        return runtime.open(job["checkpoint"], threads=job["threads"])
    return RUNTIMES.get(job["kind"])(
        Path(job["path"]),
        context_length=job["context_length"],
        vocab_size=job["vocab_size"],
        threads=job["threads"],
    )


def ours(job: Job) -> Callable[[list[str]], Answers]:
    """Return what answers prompts through ``mobilekit.runtime``."""
    opened, tokenizer = open_runtime(job), load_tokenizer(job["checkpoint"])
    letters = [tokenizer.encode(f"Answer:{letter}")[-1] for letter in LETTERS]

    def answer(texts: list[str]) -> Answers:
        found: dict[int, list[float]] = {}
        for index, logits in prompt_logits(opened, [tokenizer.encode(text) for text in texts]):
            found[index] = log_softmax(logits)[letters].tolist()
        return [found[index] for index in range(len(texts))]

    return answer


def lm_eval(job: Job) -> Callable[[list[str]], Answers]:
    """Return what answers prompts through lm-eval's hf backend."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(job["threads"])
    if limit := job["memory_bytes"]:  # what makes "auto" halve its batch instead of being killed
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    model = HFLM(
        pretrained=job["checkpoint"],
        device="cpu",
        dtype=job["dtype"],
        batch_size=job["batch_size"],
        max_batch_size=64,
    )

    def answer(texts: list[str]) -> Answers:
        pairs = [(text, letter) for text in texts for letter in LETTERS]
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        found = [logprob for logprob, _ in model.loglikelihood(asked, disable_tqdm=True)]
        return [found[i : i + 4] for i in range(0, len(found), 4)]

    return answer


def rates(job: Job) -> dict[str, Any]:
    """Return tokens a second of plain forward passes, no padding, last positions' logits only."""
    opened, generator = open_runtime(job), np.random.default_rng(0)
    shapes = SHAPES if job["kind"] == "torch" else SHAPES[:3]
    found = {}
    for rows, length in (shapes[0], *shapes):  # the first one warms up
        ids = generator.integers(1, 2048, (rows, length))
        step = _forward(opened, ids)
        found[f"{rows}x{length}"] = min((timed(step)[0] for _ in range(2)), key=lambda t: t["ns"])
    return found


def _forward(opened: Any, ids: Any) -> Callable[[], Any]:
    if len(ids) == 1 and not hasattr(opened, "model"):
        return lambda: (opened.reset(), opened.forward(ids[0], 0))
    import torch

    tokens = torch.from_numpy(ids)

    @torch.inference_mode()
    def forward() -> Any:
        return opened.model(input_ids=tokens, logits_to_keep=1, use_cache=False)

    return forward


def timed(function: Callable[[], Any]) -> tuple[dict[str, int], Any]:
    """Return nanoseconds on the clock and of processor time, and the result."""
    clock, processor = time.perf_counter_ns(), time.process_time_ns()
    result = function()
    spent = {
        "ns": time.perf_counter_ns() - clock,
        "cpu_ns": time.process_time_ns() - processor,
    }
    return spent, result


def main() -> None:
    """Do what the job says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["what"] == "rates":
        told: dict[str, Any] = {"rates": rates(job)}
    else:
        texts = json.loads(Path(job["prompts"]).read_text())
        answer = lm_eval(job) if job["kind"] == "lm-eval" else ours(job)
        answer(texts[:2])
        reset_peak_rss()
        told, logprobs = timed(lambda: answer(texts))
        told |= {"logprobs": logprobs, "peak_bytes": peak_rss_bytes()}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
