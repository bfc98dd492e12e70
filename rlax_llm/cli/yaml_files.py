"""Files of settings: YAML whose scalars stay text, for a setting's own type says what its text means.

So ``no`` is text where text is wanted, ``010`` is ten, ``1:30`` is no number, and a tag makes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_MOST_CHARACTERS = 1_000_000
_NULL = "tag:yaml.org,2002:null"
_KINDS = ("null", "str", "seq", "map")
_FORM = "wanted lines of 'setting: value'"


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    problem = f"the tag {node.tag} makes more than text; leave it out"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """Null, text, lists and mappings, whose keys are text and different."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as its parent has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag == _NULL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is not None and tag.rpartition(":")[2] in _KINDS
    } | {None: _refuse_tag}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not text", key.start_mark)
            if key.value in lines:
                problem = f"{key.value!r} is given twice, first in line {lines[key.value]}; leave one out"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of settings holds: text by name, or None, or lists.

    A file in which every line is a comment holds nothing.

    Args:
        path: of a YAML or JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, and the line where there is one: a directory, not text, not YAML, empty, not a
            mapping, a key twice, a tag, nested too deep.
    """
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty, {_FORM}.")
    try:
        content = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(f"{path}, line {_line(error)}: {error.problem}.") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{path} is not YAML: {error.problem}, line {_line(error)}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deep, {_FORM}.") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, {_FORM}.")
    return dict(content)


def _text(path: str | os.PathLike[str]) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path} (--config).") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 text.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a YAML file of settings.") from None
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{path} has more than {_MOST_CHARACTERS:,} characters, {_FORM}.")
    return text


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return 1 if mark is None else mark.line + 1
