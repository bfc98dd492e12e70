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
    return convert(html.unescape(found[2]), display="block" if block else "inline")


def _of_docstring(found: re.Match) -> str:
    if not found[1]:
        return found[0]
    plain = " ".join(html.unescape(found[1]).split())
    return mathml(plain) or found[0]
