"""English text that ships with CPython, split into training and held-out documents.

The training text is collected from the interpreter that runs; the held-out text is a frozen
file of this package, so a held-out figure means the same whichever Python computed it::

    from mobilekit.data.corpora import heldout_text, training_text

No stdlib module is imported for this: sources are parsed with ``ast``. Only ``pydoc_data.topics``
(one dictionary of strings) and modules compiled into the interpreter are looked at live.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Document",
    "clean_against",
    "cpython_documents",
    "heldout_documents",
    "heldout_text",
    "is_heldout_name",
    "split_documents",
    "training_documents",
    "training_text",
]

HELDOUT_FILE = "cpython_heldout.txt"
HELDOUT_INDEX = "cpython_heldout.json"
DOCUMENT_SEPARATOR = "\n\n"

_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "lib-dynload", "site-packages", "test", "tests"}
)
_SHINGLE_WORDS = 8  # a run of this many equal words counts as the same text
_MIN_PARAGRAPH = 24
_MIN_COMMENT = 80
_MIN_DOCUMENT = 200
_HELDOUT_PER_MILLE = 35
# A huge held-out document would make the figure depend on one author's style.
_HELDOUT_SALT = "37"  # of 40 tried before any training: a mix of kinds close to the whole corpus
_MAX_HELDOUT_DOCUMENT = 24_000
_COMMENT = re.compile(r"[ \t]*#[ \t]?(.*)")
_WORD = re.compile(r"\w+")
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Document(NamedTuple):
    """One piece of text that is never cut across the split."""

    name: str
    text: str


@lru_cache(maxsize=1)
def cpython_documents() -> tuple[Document, ...]:
    """Every English document of the running interpreter's standard library, sorted by name.

    A paragraph that occurs twice is kept in the first document only.

    Returns:
        Documents named ``topic/…``, ``source/…``, ``builtin/…`` or ``text/…``.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    collected = [*_topics(), *_sources(root), *_builtin_modules(), *_text_files(root)]
    seen: set[str] = set()
    documents = []
    for name, text in sorted(collected):
        kept = []
        for paragraph in _paragraphs(text):
            key = " ".join(paragraph.split())
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        joined = DOCUMENT_SEPARATOR.join(kept)
        if len(joined) >= _MIN_DOCUMENT:
            documents.append(Document(name, joined))
    return tuple(documents)


def split_documents(
    documents: Iterable[Document],
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Training and held-out documents, chosen by a hash of each name.

    Training documents lose every paragraph that shares eight consecutive words with a
    held-out document.

    Args:
        documents: What to split; order is kept.

    Returns:
        ``(training, heldout)``.
    """
    documents = tuple(documents)
    heldout = tuple(
        document
        for document in documents
        if is_heldout_name(document.name) and len(document.text) <= _MAX_HELDOUT_DOCUMENT
    )
    names = {document.name for document in heldout}
    rest = (document for document in documents if document.name not in names)
    return clean_against(rest, heldout), heldout


def is_heldout_name(name: str) -> bool:
    """Whether the hash of a document's name puts it into the held-out split."""
    digest = hashlib.sha256(f"{_HELDOUT_SALT}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < _HELDOUT_PER_MILLE


def clean_against(
    documents: Iterable[Document], heldout: Iterable[Document]
) -> tuple[Document, ...]:
    """The documents without any paragraph that repeats eight words of a held-out document.

    Args:
        documents: Training candidates.
        heldout: What must not leak.

    Returns:
        The cleaned documents; those left with next to nothing are dropped.
    """
    forbidden: set[str] = set()
    for document in heldout:
        forbidden.update(_shingles(document.text))
    cleaned = []
    for name, text in documents:
        kept = [part for part in _paragraphs(text) if forbidden.isdisjoint(_shingles(part))]
        joined = DOCUMENT_SEPARATOR.join(kept)
        if len(joined) >= _MIN_DOCUMENT:
            cleaned.append(Document(name, joined))
    return tuple(cleaned)


@lru_cache(maxsize=1)
def heldout_documents() -> tuple[Document, ...]:
    """The frozen held-out documents, as they were when the split was made."""
    folder = resources.files("mobilekit.data") / "corpora"
    raw = (folder / HELDOUT_FILE).read_bytes()
    index = json.loads((folder / HELDOUT_INDEX).read_text(encoding="utf-8"))
    documents = []
    start = 0
    for entry in index["documents"]:
        end = start + int(entry["bytes"])
        documents.append(Document(entry["name"], raw[start:end].decode("utf-8")))
        start = end + len(DOCUMENT_SEPARATOR)
    return tuple(documents)


def heldout_text() -> str:
    """The frozen held-out text; no model of this package has seen it in training."""
    folder = resources.files("mobilekit.data") / "corpora"
    return (folder / HELDOUT_FILE).read_bytes().decode("utf-8")


@lru_cache(maxsize=1)
def training_documents() -> tuple[Document, ...]:
    """The running interpreter's documents without anything that the held-out file holds."""
    heldout = heldout_documents()
    names = {document.name for document in heldout}
    rest = (document for document in cpython_documents() if document.name not in names)
    return clean_against(rest, heldout)


def training_text() -> str:
    """All training documents as one string."""
    return DOCUMENT_SEPARATOR.join(document.text for document in training_documents())


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n[ \t]*\n+", text):
        stripped = paragraph.rstrip().strip("\n")
        if len(stripped) >= _MIN_PARAGRAPH:
            yield stripped


def _shingles(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    if len(words) < _SHINGLE_WORDS:
        return set()
    stops = range(_SHINGLE_WORDS, len(words) + 1)
    return {" ".join(words[stop - _SHINGLE_WORDS : stop]) for stop in stops}


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(f"topic/{name}", text.strip())


def _files(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files below ``root``, relative to it, without tests and installed packages."""
    # Path.rglob cannot leave folders out, and site-packages may be huge.
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(suffixes):
                yield Path(folder, name).relative_to(root)


def _sources(root: Path) -> Iterator[Document]:
    for relative in _files(root, (".py",)):
        text = _source_text(root / relative)
        if text:
            yield Document(f"source/{relative.as_posix()}", text)


def _source_text(path: Path) -> str:
    """Docstrings and prose comments of one source file, in the order of the file."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return ""  # lib2to3 and codecs ship files that are meant not to parse
    pieces = list(_comments(source))
    for node in _documented(tree):
        docstring = ast.get_docstring(node)
        if docstring and docstring.isascii():
            pieces.append((getattr(node, "lineno", 0), docstring))
    return DOCUMENT_SEPARATOR.join(text for _, text in sorted(pieces))


def _documented(tree: ast.Module) -> Iterator[_Documented]:
    """The nodes that may have a docstring; expressions hold none and are not entered."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _Documented):
            yield node
        for field in ("body", "orelse", "handlers", "finalbody", "cases"):
            children = getattr(node, field, ())
            stack.extend(children if isinstance(children, list) else ())


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Comment blocks of two or more lines that read as prose rather than as disabled code."""
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""]):
        match = _COMMENT.fullmatch(line)
        if match and not line.startswith("#!"):
            block.append(match[1].rstrip())
            continue
        text = "\n".join(block).strip("\n")
        if len(block) > 1 and _is_prose(text):
            yield number, text
        block = []


def _is_prose(text: str) -> bool:
    if len(text) < _MIN_COMMENT or not text.isascii():
        return False
    plain = sum(character.isalpha() or character in " \n,.'" for character in text)
    return plain / len(text) > 0.9


def _builtin_modules() -> Iterator[Document]:
    """Docstrings written in C, of the modules compiled into the interpreter."""
    for name in sorted(sys.builtin_module_names):
        module = importlib.import_module(name)
        pieces = []
        for _, member in sorted(vars(module).items(), key=lambda item: item[0]):
            pieces.append(_own_docstring(member))
            if isinstance(member, type):
                names = sorted(vars(member))
                pieces.extend(_own_docstring(vars(member)[attribute]) for attribute in names)
        text = DOCUMENT_SEPARATOR.join(piece for piece in pieces if piece)
        if text:
            yield Document(f"builtin/{name}", text)


def _own_docstring(member: object) -> str:
    docstring = getattr(member, "__doc__", None)
    # Instances answer with their class's docstring; that one is collected at the class.
    if not isinstance(docstring, str) or docstring == type(member).__doc__:
        return ""
    return inspect.cleandoc(docstring) if docstring.isascii() else ""


def _text_files(root: Path) -> Iterator[Document]:
    """Licences, read-me files and news that lie beside the sources as plain text."""
    for relative in _files(root, (".txt", ".rst")):
        if "Grammar" not in relative.name:
            text = (root / relative).read_text(encoding="utf-8", errors="ignore")
            yield Document(f"text/{relative.as_posix()}", text.strip())
