"""What an answer must look like: the form that a request's output tokens are held to."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class GrammarKind(enum.StrEnum):
    """How a grammar's text is to be read."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    """The whole answer matches it, in Rust's syntax of regular expressions."""
    CHOICE = "choice"
    """A JSON list of strings, one of which is the answer."""
    LARK = "lark"
    """A context-free grammar whose first rule is ``start``, as llguidance takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """Plain text, compiled where it is used: equal grammars are compiled once a worker."""

    kind: GrammarKind
    text: str
