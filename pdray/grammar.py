"""Grammars as llguidance takes them, and whether they are any good. Loads no torch: the edge
checks with it what workers will compile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pdray.core.errors import InvalidRequestError
from pdray.core.grammar import Grammar, GrammarKind

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

JSON_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between two tokens of JSON, unless the schema's ``x-guidance`` has rules of its own. Bounded,
as a model that has nothing to say would fill its answer with it; wide enough for nine levels of
pretty printing."""


def compile_grammar(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of the grammar. Some milliseconds, without the interpreter's
    lock. Raises InvalidRequestError with the library's reason."""
    from llguidance import LLMatcher

    try:
        source = _source_of(grammar)
    except ValueError as error:
        raise InvalidRequestError(first_line(str(error))) from error
    matcher = LLMatcher(tokenizer, source, log_level=0)
    if matcher.is_error():
        raise InvalidRequestError(first_line(matcher.get_error()))
    return matcher


def check_grammar(grammar: Grammar) -> None:
    """Raises InvalidRequestError for one that no worker could compile. May take long for a huge
    one: not for an event loop.

    Over a vocabulary of bytes, so that no tokenizer is needed. A Lark grammar may name tokens of
    the model: of those only the syntax is checked.
    """
    from llguidance import LLMatcher, LLTokenizer

    if grammar.kind is not GrammarKind.LARK:
        compile_grammar(grammar, LLTokenizer("byte"))
    elif complaint := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar.text)):
        raise InvalidRequestError(first_line(complaint))


def _source_of(grammar: Grammar) -> str:
    """Raises ValueError where the text itself cannot be read."""
    from llguidance import LLMatcher, regex_to_lark

    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            schema = json.loads(grammar.text)
            options = schema.get("x-guidance", {}) if isinstance(schema, dict) else {}
            if "whitespace_flexible" in options:
                return LLMatcher.grammar_from_json_schema(grammar.text)
            return LLMatcher.grammar_from_json_schema(
                grammar.text, defaults={"whitespace_pattern": JSON_WHITESPACE}
            )
        case GrammarKind.REGEX:
            # \d as people mean it: the ten digits, not those of every script.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.text, 'd')}/")
        case GrammarKind.CHOICE:
            choices = " | ".join(json.dumps(choice) for choice in json.loads(grammar.text))
            return LLMatcher.grammar_from_lark(f"start: {choices}")
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)


def first_line(complaint: str) -> str:
    """The library's complaints go on with a picture of the place; regular expressions' say what
    is wrong in their last line."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("error: ")]
    return (reasons or lines or ["it cannot be compiled"])[0].removeprefix("error: ")
