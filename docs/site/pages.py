"""Pages of the site that do not lie in `docs/`, and the navigation of folders: what MkDocs is told beside `mkdocs.yml`.

The folders of `BESIDE` are pages too, at their own paths, so that links between them are the same in the repository and
on the site. `FOLDER/*` in the navigation stands for the pages of that folder that the navigation does not name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
BESIDE = {
    "examples": ("README.md", "*.py", "curves/*.png"),
    "experiments": ("README.md", "*/README.md", "*/*.png", "*/*.json", "*/*.yaml", "*/samples.md"),
}
"""Folders of the repository that the site shows, and their files."""
FOUND_FIRST = {
    "troubleshooting.md": 3,
    "book": 2,
    "guides": 2,
    "reference": 0.7,
    "experiments": 0.5,
    "algorithms.md": 0.5,
}
"""How much more than another page one of these is what a search looks for."""
FETCHED = re.compile(r"""(?:src=|<link(?![^>]*rel="canonical")[^>]*href=)"?https?://[^ >]*|url\(["']?https?://[^)]*""")
"""What a browser would take from another server to show a page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of other folders, then write out the navigation."""
    for folder, patterns in BESIDE.items():
        for path in sorted(found for pattern in patterns for found in (ROOT / folder).glob(pattern)):
            files.append(_file(config, path))
    pages = [file.src_uri for file in files.documentation_pages()]
    config.nav = _expanded(config.nav, pages, _named(config.nav))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of `docs/` point into the site, where the page that they name is at the top of it."""
    folder = page.file.src_uri.partition("/")[0]
    page.meta.setdefault("search", {})["boost"] = FOUND_FIRST.get(folder, 1)
    if page.file.src_uri == "algorithms.md":  # its tables want the width
        page.meta["hide"] = ["toc"]
    depth = page.file.src_uri.count("/")
    out = "../" * (depth + 1)
    inside = "../" * depth
    for folder in BESIDE:
        markdown = markdown.replace(f"]({out}{folder}/", f"]({inside}{folder}/")
    if page.file.src_uri == "examples/README.md":
        markdown = re.sub(r"\]\((\w+)\.py\)", r"](\1.md)", markdown)
    # A figure is its own link, to be seen whole on a small screen.
    markdown = re.sub(r"^!\[(.*)\]\((\S+\.png)\)$", r"[![\1](\2)](\2)", markdown, flags=re.M)
    return re.sub(r"^```mermaid\n(.*?)^```$", lambda found: _floors(found[1]), markdown, flags=re.M | re.S)


def on_post_build(config: MkDocsConfig) -> None:
    """No page, style or script takes anything from another server."""
    for path in Path(config.site_dir).rglob("*"):
        found = FETCHED.search(path.read_text(encoding="utf-8")) if path.suffix in (".html", ".css") else None
        if found:
            raise PluginError(f"{path.relative_to(config.site_dir)}: takes {found[0]} from another server.")


def _file(config: MkDocsConfig, path: Path) -> File:
    place = path.relative_to(ROOT)
    if path.suffix != ".py":
        return File.generated(config, place.as_posix(), abs_src_path=str(path))
    text = f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"
    return File.generated(config, place.with_suffix(".md").as_posix(), content=text)


def _named(nav: Any) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    parts = nav.values() if isinstance(nav, dict) else nav
    return {name for part in parts for name in _named(part)}


def _expanded(nav: list, pages: list[str], named: set[str]) -> list:
    whole = []
    for entry in nav:
        if isinstance(entry, dict):
            whole += [{title: _inside(part, pages, named) for title, part in entry.items()}]
        elif entry.endswith("/*"):
            folder = entry.removesuffix("*")
            whole += sorted(page for page in pages if page.startswith(folder) and page not in named)
        else:
            whole += [entry]
    return whole


def _inside(part: Any, pages: list[str], named: set[str]) -> Any:
    return _expanded(part, pages, named) if isinstance(part, list) else part


def _floors(flowchart: str) -> str:
    """The house as rows of boxes, a floor each: what a flowchart's arrows leave above what they point at."""
    boxes = {name: (title, text) for name, title, text in re.findall(r'(\w+)\["<b>(\w+)</b><br>(.*?)"\]', flowchart)}
    arrows = re.findall(r"(\w+) --> (\w+)", flowchart)
    floor = dict.fromkeys(boxes, 0)
    for _ in boxes:
        for above, below in arrows:
            floor[below] = max(floor[below], floor[above] + 1)
    rows = []
    for level in sorted(set(floor.values())):
        here = [boxes[name] for name in boxes if floor[name] == level]
        cells = "".join(f"<div><b>{title}</b><br>{text}</div>" for title, text in here)
        rows.append(f'<div class="floor">{cells}</div>')
    return '<div class="house">' + "".join(rows) + "</div>"
