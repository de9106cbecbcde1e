"""Reads a YAML file strictly: errors have a line, and a key that stands twice is one."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import yaml

from pdray.core.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader, but a repeated key is an error instead of a silent last word."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> object:
    """The file's content; raises ConfigError that names the file, and the line where it can."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_where(error)}not valid YAML: {_what(error)}") from error


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _what(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error)
