"""The picture of levels: one column a layer, one lane a sub-block, filled as far as it was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from . import svg
from .numbers import percent
from .units import BLOCK_NAMES, BLOCKS, UNIT_NAMES, UnitRow

_LANE = 56.0  # pixels of a sub-block that was kept whole
_MOST, _LEAST = 40, 10  # columns of one band
_FILLED = 0.84  # of a column's width


def level_map(label: str, rows: Sequence[UnitRow]) -> str:
    """Return columns of attention and MLP; a removed sub-block is a crossed box.

    More than 40 layers take several bands. A share that is not known is a hollow column with a
    question mark. The first row of a layer and sub-block counts.
    """
    cells: dict[tuple[str, int], UnitRow] = {}
    for row in rows:
        cells.setdefault((row.block, row.layer), row)
    layers = sorted({row.layer for row in rows})
    bands = -(-len(layers) // _MOST) or 1
    columns = max(_LEAST, -(-len(layers) // bands))
    body: list[str] = []
    y = 0.0
    for start in range(0, len(layers), columns):
        own, y = _band(cells, layers[start : start + columns], columns, y)
        body.extend(own)
    return svg.document(body, height=max(y, 20.0), label=label, kind="levels")


def _band(
    cells: Mapping[tuple[str, int], UnitRow], layers: Sequence[int], columns: int, y: float
) -> tuple[list[str], float]:
    """Return the lanes of some layers, from ``y`` pixels on, and where the next band begins."""
    body = []
    for block in BLOCKS:
        if not any(name == block for name, _ in cells):
            continue
        body.append(svg.text(BLOCK_NAMES[block], at=0, y=y + 13, cls="label"))
        for column, layer in enumerate(layers):
            if (row := cells.get((block, layer))) is not None:
                body.append(_slot(row, 100 * column / columns, 100 / columns, y + 20))
        y += 20 + _LANE + 10
    every = next(step for step in (1, 2, 5, 10) if step * 10 >= columns or step == 10)
    for column, layer in enumerate(layers):
        if column % every == 0:
            at = 100 * (column + 0.5 * _FILLED) / columns
            body.append(svg.text(str(layer), at=at, y=y + 6, cls="tick", anchor="middle"))
    return body, y + 26


def _slot(row: UnitRow, at: float, width: float, top: float) -> str:
    """Return one sub-block: all that there was, and over it what was kept."""
    wide, share = width * _FILLED, row.share
    cls = "slot" if share is not None else "slot none"
    parts = [svg.rect(at=at, y=top, width=wide, height=_LANE, cls=cls, title=row_title(row))]
    if row.is_removed:
        parts.append(_crossed(at, wide, top, escape(row_title(row))))
    elif share is None:
        middle = at + wide / 2
        parts.append(svg.text("?", at=middle, y=top + _LANE / 2 + 4, cls="tick", anchor="middle"))
    else:
        height = _LANE * share
        y = top + _LANE - height
        parts.append(svg.rect(at=at, y=y, width=wide, height=height, cls="fill"))
    return "".join(parts)


def _crossed(at: float, width: float, top: float, title: str) -> str:
    """Return a crossed box; a stretched inner picture, since its width is not known in pixels."""
    return (
        f'<svg x="{svg.x(at)}" y="{svg.number(top)}" width="{svg.x(width)}" '
        f'height="{svg.number(_LANE)}" viewBox="0 0 10 10" preserveAspectRatio="none">'
        '<path d="M0 0H10V10H0zM0 0L10 10M10 0L0 10" class="removed" '
        f'vector-effect="non-scaling-stroke"><title>{title}</title></path></svg>'
    )


def row_title(row: UnitRow) -> str:
    """Return a row in words: layer, what it kept, its level and error, where known."""
    words = [f"layer {row.layer}", BLOCK_NAMES[row.block]]
    if row.is_removed:
        words.append("removed whole")
    elif row.of is None or row.kept is None:
        words.append(f"{row.kept} {UNIT_NAMES[row.unit]} kept" if row.kept else "not recorded")
    else:
        words.append(f"{row.kept} of {row.of} {UNIT_NAMES[row.unit]} kept")
        if row.share is not None:
            words.append(percent(row.share))
    if row.is_edited:
        words.append("edited by hand")
    elif row.level is not None:
        words.append(f"level {row.level}")
    if row.error is not None:
        words.append(f"relative error {row.error:.4g}")
    return " · ".join(words)
