r"""Equations as MathML, which browsers show by themselves: `\(…\)`, `\[…\]`, and those of docstrings."""

from __future__ import annotations

import html
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page
from plain_equations import mathml

SPAN = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
CODE = re.compile(r"(?s:<pre.*?</pre>)|<code>([^<]+)</code>")
WORD = re.compile(r"<(mi|mo)>(log|exp|min|max|clip|mean|std|sg)</\1>")
SHORT = 44
"""Characters of an equation that fit on a telephone's line."""
FONT = "fonts/STIXTwoMath-Regular.ttf"


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Each equation as MathML."""
    html = SPAN.sub(_rendered, html)
    return CODE.sub(_of_docstring, html) if page.file.src_uri.startswith("reference/") else html


def on_post_build(config: MkDocsConfig) -> None:
    """Ship the font of the equations."""
    spec = find_spec("ziamath")
    assert spec is not None and spec.origin is not None
    target = Path(config.site_dir, "site", Path(FONT).name)
    shutil.copyfile(Path(spec.origin).parent / FONT, target)


def _rendered(found: re.Match) -> str:
    block = found[1] == "div"
    made = convert(html.unescape(found[2]), display="block" if block else "inline")
    return WORD.sub(_spaced, made.replace('<mi mathvariant="script">L</mi>', "<mi>ℒ</mi>"))


def _spaced(found: re.Match) -> str:
    """The name of a function with the space that browsers give it from neither side, or from both too much."""
    return f'<mo form="prefix" lspace="0.12em" rspace="0.12em">{found[2]}</mo>'


def _of_docstring(found: re.Match) -> str:
    if not found[1]:
        return found[0]
    plain = " ".join(html.unescape(found[1]).split())
    shown = mathml(plain)
    if shown is None:
        return found[0]
    # Browsers break no line within an equation: a long one scrolls where the screen is narrow.
    return f'<span class="long">{shown}</span>' if len(plain) > SHORT else shown
