"""Turns what is wrong with a config into one ConfigError: file, key, value, what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import get_args, get_origin

from pydantic import BaseModel, ValidationError

from pdray.core.errors import ConfigError
from pdray.core.out_of_scope import out_of_scope

_MAX_VALUE_CHARS = 80
_OWN_WORDS = {
    "too_short": "should name at least one",
    "string_too_short": "should not be empty",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that cannot be: ``key`` is the dotted path, ``value`` what stands there."""

    key: str
    value: object
    accepted: str

    def __str__(self) -> str:
        value = repr(self.value)
        if len(value) > _MAX_VALUE_CHARS:
            value = value[:_MAX_VALUE_CHARS] + "..."
        return f"{self.key} = {value}: {self.accepted}"


def config_error(source: str, problems: Iterable[object]) -> ConfigError:
    """One error for all problems of a file, a line each."""
    lines = [str(problem) for problem in problems]
    assert lines, "a config error without a problem"
    if len(lines) == 1:
        return ConfigError(f"{source}: {lines[0]}")
    return ConfigError(f"{source}: {len(lines)} problems\n" + "\n".join(f"  {x}" for x in lines))


def validation_problems(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """pydantic's errors in our words."""
    lines = []
    for item in error.errors(include_url=False):
        loc = tuple(part for part in item["loc"] if part != "[key]")
        key = ".".join(str(part) for part in loc) or "(top level)"
        if item["type"] == "extra_forbidden":
            lines.append(_unknown_key(key, known_keys(root, loc[:-1])))
        elif item["type"] == "missing":
            lines.append(f"{key}: is missing")
        else:
            accepted = _OWN_WORDS.get(item["type"], item["msg"])
            accepted = accepted.removeprefix("Value error, ").replace("Input should", "should")
            lines.append(str(Problem(key=key, value=item["input"], accepted=accepted)))
    return lines


def known_keys(root: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that the model at ``loc`` under ``root`` has."""
    kind: object = root
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _without_none(kind.model_fields[str(part)].annotation)
        else:
            kind = get_args(kind)[-1]  # dict[str, X] -> X
    assert isinstance(kind, type), loc
    assert issubclass(kind, BaseModel), loc
    return list(kind.model_fields)


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key as a dotted path; ``*`` stands for a name that the user chooses."""
    keys = []
    for name, field in model.model_fields.items():
        kind, path = _without_none(field.annotation), f"{prefix}{name}"
        if getattr(kind, "__origin__", None) is dict:
            kind, path = get_args(kind)[-1], f"{path}.*"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += all_keys(kind, f"{path}.")
        else:
            keys.append(path)
    return keys


def _without_none(kind: object) -> object:
    """The section of one that may be left out."""
    if get_origin(kind) is UnionType:
        return next((each for each in get_args(kind) if each is not NoneType), kind)
    return kind


def choice(value: str, known: Iterable[str]) -> str | None:
    """What to say where ``value`` is none of ``known``; None where it is."""
    names = sorted(known)
    if value in names:
        return None
    return f"{_did_you_mean(value, names)}accepted: {', '.join(names)}"


def _unknown_key(key: str, known: list[str]) -> str:
    name = key.rpartition(".")[2]
    if reason := out_of_scope(name):
        return f"{key}: {reason}"
    hint = _did_you_mean(name, known)
    return f"{key}: unknown key; {hint}known keys: {', '.join(known)}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


def require_mapping(data: object, source: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise config_error(source, [f"holds {type(data).__name__}, should be a mapping of keys"])
    return data
