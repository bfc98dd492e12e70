"""The reference of every public name: a page for each folder of the package, made from the faces themselves.

mkdocstrings shows signature and docstring. Names in code, ``rl.gae`` on any page and ``gae`` in the reference, become
links to where they stand.
"""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from pathlib import Path
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import rlax_llm

STUBS = runpy.run_path(str(Path(__file__).parents[1] / "write_stubs.py"))
FLAT = STUBS["homes"](rlax_llm)
WHOLE = {"credit": ["streams"], "recipes": ["trl", "trl_config", "verl", "openrlhf"]}
"""Modules whose public functions are used through the module, by folder."""
TITLES = {
    "core": "Records, KL, distributions",
    "credit": "Returns and advantages",
    "policy": "Policy losses",
    "natural": "Natural gradients",
    "preference": "Preference losses",
    "recipes": "Recipes",
    "envs": "Environments",
    "models": "Models",
    "generation": "Generation",
    "rewards": "Rewards",
    "data": "Data",
    "loops": "Loops",
}
ORDER = list(TITLES)
FIRST = {
    "core": ["types", "kl", "distributions"],
    "credit": ["returns", "groups", "streams"],
    "policy": ["objectives", "trust_regions", "ratios", "weightings"],
    "preference": ["pairs", "implicit_rewards", "links"],
    "envs": ["environment", "registry"],
    "models": ["config", "decoder", "loading"],
    "loops": ["group", "language", "rlhf", "preference", "labels", "policy", "control", "updates"],
}
"""The modules that a page begins with."""
SECTIONS = {"trl": "TRL's variants", "trl_config": "TRL's settings", "verl": "verl's variants"}
SECTIONS |= {"openrlhf": "OpenRLHF's variants", "trpo": "TRPO", "rlhf": "RLHF", "kl": "KL divergences"}
PLACES: dict[str, str] = {}
"""Page and anchor of each name as one writes it, ``rl.gae`` and ``rl.credit.gae``."""
SHORT: dict[str, str] = {}
"""Page and anchor of each bare name."""
CODE = re.compile(r"(<pre.*?</pre>|<a .*?</a>|<h[1-6].*?</h[1-6]>)|<code>([\w.]+)(\([^<]*\))?</code>", re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference."""
    texts = {f"reference/{name}.md": _page(name) for name in ORDER}
    for path, text in {"reference/index.md": _index(), **texts}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the names that stand in code."""
    inside = page.file.src_uri.startswith("reference/") or page.file.src_uri == "algorithms.md"

    def linked(found: re.Match) -> str:
        name = found[2]
        place = PLACES.get(name or "") or (SHORT.get(name or "") if inside else None)
        if found[1] or place is None:
            return found[0]
        path, anchor = place.split("#")
        file = files.get_file_from_path(path)
        assert file is not None, path
        return f'<a href="{file.url_relative_to(page.file)}#{anchor}"><code>{name}{found[3] or ""}</code></a>'

    return CODE.sub(linked, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Every public name stands in the built reference."""
    absent = [name for name in FLAT if f"rl.{name}" not in PLACES]
    if absent:
        raise PluginError(f"reference: these names are on no page: {', '.join(absent)}.")
    for path in {place.split("#")[0] for place in PLACES.values()}:
        built = Path(config.site_dir, path.removesuffix(".md"), "index.html").read_text(encoding="utf-8")
        wanted = {place.split("#")[1] for place in PLACES.values() if place.startswith(f"{path}#")}
        missing = sorted(anchor for anchor in wanted if f'id="{anchor}"' not in built)
        if missing:
            raise PluginError(f"{path}: these names are not on the page: {', '.join(missing)}.")


def _page(folder: str) -> str:
    face = importlib.import_module(f"rlax_llm.{folder}")
    homes = {name: STUBS["defining"](face, name) for name in STUBS["homes"](face)}
    # What is flat although its folder shows a module of that name, as rl.mesh.
    own = {name for name, home in FLAT.items() if home.startswith(f"{folder}.")} - set(homes)
    homes |= {name: f"rlax_llm.{FLAT[name]}" for name in sorted(own)}
    whole = [f"rlax_llm.{folder}.{module}" for module in WHOLE.get(folder, ())]
    lines = [f"# {TITLES[folder]}", "", f"`rl.{folder}`: {inspect.getdoc(face)}", ""]
    first = [f"rlax_llm.{folder}.{module}" for module in FIRST.get(folder, ())]
    for home in dict.fromkeys([*first, *homes.values(), *whole]):
        module = importlib.import_module(home)
        names = [name for name, place in homes.items() if place == home]
        names += [name for name in _public(module) if name not in names] if home in whole else []
        lines += _section(folder, module, names, through=home in whole)
    return "\n".join(lines)


def _public(module: ModuleType) -> list[str]:
    found = vars(module).items()
    made = [name for name, value in found if inspect.isfunction(value) or inspect.isclass(value)]
    return [name for name in made if name[0] != "_" and getattr(module, name).__module__ == module.__name__]


def _section(folder: str, module: ModuleType, names: list[str], through: bool) -> list[str]:
    """One module: what it says of itself, and its public names."""
    last = module.__name__.rpartition(".")[2]
    lines = [f"## {SECTIONS.get(last, last.replace('_', ' ').capitalize())}", "", inspect.getdoc(module) or "", ""]
    face = importlib.import_module(f"rlax_llm.{folder}")
    for name in names:
        on_face = name in STUBS["homes"](face) and STUBS["defining"](face, name) == module.__name__
        flat = name in FLAT and getattr(rlax_llm, name) is getattr(module, name)
        deeper = f"rl.{folder}.{name}" if on_face else f"rl.{folder}.{last}.{name}"
        shown = f"rl.{name}" if flat else deeper
        place = f"reference/{folder}.md#{module.__name__}.{name}"
        PLACES.update({shown: place, deeper: place})
        if not through:
            SHORT.setdefault(name, place)
        lines += [f"::: {module.__name__}.{name}", "    options:", f"      heading: {shown}", ""]
        lines[-1:] = [f"      toc_label: {shown.removeprefix('rl.')}", ""]
    return lines


def _index() -> str:
    lines = [
        "# Reference",
        "",
        "Every public name. Those used most are flat, `rl.gae`; all are in the folder of their topic, `rl.credit.gae`.",
        "Equations are written for one stream `[T]` or one group `[G]`; `jax.vmap` gives the layout.",
        "",
    ]
    for folder in ORDER:
        names = [name for name, home in FLAT.items() if home.split(".")[0] == folder]
        lines += [f"## [{TITLES[folder]}]({folder}.md)", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `rl.{name}` | {_first(getattr(rlax_llm, name))} |" for name in names]
        lines += [""]
    return "\n".join(lines)


def _first(value: object) -> str:
    """The first sentence of a docstring, for a table."""
    text = inspect.getdoc(value) if inspect.isfunction(value) or inspect.isclass(value) else value.__class__.__name__
    return " ".join((text or "").split("\n\n")[0].split()).replace("|", "\\|")
