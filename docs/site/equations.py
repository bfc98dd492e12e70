r"""Equations as MathML, which browsers show by themselves: of `\(…\)` and `\[…\]` in a built page."""

from __future__ import annotations

import html
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

SPAN = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
FONT = "fonts/STIXTwoMath-Regular.ttf"


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Each equation as MathML."""
    return SPAN.sub(_rendered, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Ship the font of the equations."""
    spec = find_spec("ziamath")
    assert spec is not None and spec.origin is not None
    target = Path(config.site_dir, "site", Path(FONT).name)
    shutil.copyfile(Path(spec.origin).parent / FONT, target)


def _rendered(found: re.Match) -> str:
    block = found[1] == "div"
    return convert(html.unescape(found[2]), display="block" if block else "inline")
