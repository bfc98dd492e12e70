"""Notebooks as pages: their text, their code and what it put out."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and its pictures."""
    for path in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        parts: list[str] = []
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
            for output in cell.get("outputs", ()):
                parts.append(_shown(output, files, config, f"notebooks/{path.stem}_{len(parts)}.png"))
        title, _, rest = parts[0].partition("\n")
        download = f"[The notebook]({path.name}) runs on a CPU as it is, and on Colab after a change of its first cell."
        text = "\n\n".join([title, download, rest, *parts[1:]])
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def _shown(output: dict[str, Any], files: Files, config: MkDocsConfig, picture: str) -> str:
    """What a cell put out: text as it is, a picture as a file of the site."""
    data = output.get("data", {})
    if "image/png" in data:
        content = base64.b64decode("".join(data["image/png"]))
        files.append(File.generated(config, picture, content=content))
        return f"![What the cell above draws]({Path(picture).name})"
    return f"```text\n{''.join(output.get('text') or data.get('text/plain', '')).rstrip()}\n```"
