"""The letter that a model's text means, if it means exactly one."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from .questions import LETTERS, Letter

__all__ = ["parse_letter"]

Nothing = Literal["no_text", "no_letter", "several_letters"]

# words that cannot follow an article: before them a capital A is a letter
_NO_NOUN = r"(?:is|was|and|or|because|since|as|would|seems)\b"
_ARTICLE = rf"(?!(?<=A) +(?!{_NO_NOUN})[a-z])"  # "A good one"
_OPENING = r"[\s*_`\"'“‘(\[{<>#$|•·–—-]*"
_END = r"(?=\s*$|\s*\n|[.):\]}>*_`\"”,;!|。、]|['’](?!\w)|\s*[-–—:|]\s)"

_LEADING = re.compile(rf"{_OPENING}([A-D]){_END}(?!\s*[,;|]\s*[A-D]\b)")
_BARE = re.compile(r"[\s*_`\"'(\[{]*([a-d])[\s*_`\"')\]}.:]*")  # nothing but a small letter
_PHRASE = re.compile(
    r"\b(?i:answer|option|choice)\s*(?:(?i:is)\s*:?|:|=)[\s*_`\"'“(\[]*"
    rf"([A-D])(?![A-Za-z0-9_]){_ARTICLE}"
)
_ALONE = re.compile(rf"(?<![A-Za-z0-9_'’])(?<!not )([A-D])(?![A-Za-z0-9_'’]){_ARTICLE}")


def parse_letter(text: str) -> tuple[Letter | Literal[""], Nothing | None]:
    """Return the letter that a text gives as its answer, or "" with the reason.

    First that which matches: a letter that the text begins with, brackets and markup aside; "the
    answer is C", "option: C", "choice is C", where all such phrases name the same; one letter that
    stands alone, however often. The article "A" before a word in small letters is no letter, nor
    is one that "not" stands before. Text up to ``</think>`` does not count; of a thought that does
    not end, nothing does. Never raises.

    Source: section 2.4 of the official script leaves the text as it is; these rules are ours.
    """
    text = unicodedata.normalize("NFKC", text).rpartition("</think>")[2].strip()
    if not text:
        return "", "no_text"
    if "<think>" in text:
        return "", "no_letter"
    if found := _LEADING.match(text) or _BARE.fullmatch(text):
        return _letter(found[1]), None
    phrases = {match[1] for match in _PHRASE.finditer(text)}
    if len(phrases) == 1:
        return _letter(phrases.pop()), None
    alone = {match[1] for match in _ALONE.finditer(text)}
    if len(alone) == 1:
        return _letter(alone.pop()), None
    return "", "several_letters" if alone else "no_letter"


def _letter(text: str) -> Letter:
    return LETTERS["ABCD".index(text.upper())]
