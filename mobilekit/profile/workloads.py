"""What is timed, named as llama-bench names it: ``pp128``, ``tg64``, ``pp128+tg64``.

``ppN`` processes a prompt of N random tokens in one call. ``tgN`` generates N tokens, one a call,
from an empty context. ``ppN+tgM`` generates M tokens after a prompt of N. The tokens come from a
fixed seed and do not depend on the model's answers, so that every artifact of a bundle does the
same work.
"""

from __future__ import annotations

import re

import numpy as np

from mobilekit.core.errors import UsageError
from mobilekit.runtime.base import Tokens
from mobilekit.schema.result import Workload

SEED = 0
MAX_TOKENS = 1_000_000
_FORM = re.compile(r"(?:pp(?P<pp>[1-9][0-9]{0,6}))?(?P<plus>\+)?(?:tg(?P<tg>[1-9][0-9]{0,6}))?")
_HINT = "Write pp128 (prompt), tg64 (generation) or pp128+tg64, with lengths from 1 on."


def parse(text: str) -> Workload:
    """Return the workload behind a name.

    Args:
        text: ``ppN``, ``tgN`` or ``ppN+tgM``; N and M without leading zeros, at most
            ``MAX_TOKENS``.

    Raises:
        UsageError: If the name has another form.
    """
    match = _FORM.fullmatch(text)
    prompt, new = (int(match[part] or 0) if match else 0 for part in ("pp", "tg"))
    both = prompt > 0 and new > 0
    if match is None or not (prompt or new) or both != (match["plus"] is not None):
        raise UsageError(f"unknown workload '{text[:60]}'{_nearest(text)}", hint=_HINT)
    if max(prompt, new) > MAX_TOKENS:
        raise UsageError(
            f"workload '{text}' is longer than {MAX_TOKENS} tokens",
            hint="Choose lengths that fit the exported context.",
        )
    return Workload(id=text, prompt_tokens=prompt, new_tokens=new)


def parse_all(names: tuple[str, ...] | list[str]) -> list[Workload]:
    """Return the workloads behind several names.

    Raises:
        UsageError: If there is none, one is unknown, or one is named twice.
    """
    found = [parse(name) for name in names]
    if not found:
        raise UsageError("no workload was given", hint=_HINT)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"workload '{twice}' was given twice", hint="Name each workload once.")
    return found


def format_workload(prompt_tokens: int, new_tokens: int) -> str:
    """Return the name of a workload with these lengths; 0 leaves the part out."""
    parts = [f"pp{prompt_tokens}"] if prompt_tokens else []
    return "+".join([*parts, f"tg{new_tokens}"] if new_tokens else parts)


def check_fits(workload: Workload, context_length: int) -> None:
    """Refuse a workload that needs more positions than the context has.

    Raises:
        UsageError: With both lengths and the longest that fits.
    """
    needed = workload.prompt_tokens + workload.new_tokens
    if needed > context_length:
        raise UsageError(
            f"workload '{workload.id}' needs {needed} positions, but the context has "
            f"{context_length}",
            hint=f"Choose lengths of at most {context_length} tokens together, "
            "or export with a larger context length.",
        )


def random_tokens(workload: Workload, vocab_size: int) -> tuple[Tokens, Tokens]:
    """Return the prompt (N,) and the tokens fed while generating (M,), int64, in [0, V)."""
    count = workload.prompt_tokens + workload.new_tokens
    drawn = np.random.default_rng(SEED).integers(0, vocab_size, size=count, dtype=np.int64)
    return drawn[: workload.prompt_tokens], drawn[workload.prompt_tokens :]


def _nearest(text: str) -> str:
    """Return a did-you-mean for a wrong case, blanks, a comma or the wrong order."""
    plain = re.sub(r"\s+", "", text[:60].lower()).replace(",", "+")
    swapped = "+".join(reversed(plain.split("+")))
    joined = re.sub(r"(?<=[0-9])tg", "+tg", plain)
    for candidate in (plain, swapped, joined):
        match = _FORM.fullmatch(candidate)
        if match and candidate and candidate != text:
            name = format_workload(int(match["pp"] or 0), int(match["tg"] or 0))
            if candidate == name:
                return f"; did you mean '{name}'?"
    return ""
