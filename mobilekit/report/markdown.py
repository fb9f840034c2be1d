"""Text made safe for Markdown: nothing in it becomes a link, a tag, a cell or a heading."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")


def escape_markdown(value: object) -> Markup:
    """Return ``value`` on one line with HTML and Markdown characters escaped."""
    line = " ".join(str(value).split())
    safe = str(escape(line)).replace("&#39;", "'").replace("&#34;", '"')
    return Markup(_SPECIAL.sub(r"\\\1", safe))
