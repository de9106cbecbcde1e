"""The form that a body asks of its answer: OpenAI's ``response_format`` and vLLM's
``structured_outputs``, as a grammar."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from pdray.core.errors import InvalidRequestError
from pdray.core.grammar import Grammar, GrammarKind
from pdray.grammar import check_grammar
from pdray.serve.body import Body, LenientBody

CHECK_TIMEOUT_S = 10.0

Schema = dict[str, Any]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]

ANY_OBJECT: Schema = {"type": "object"}


class JsonSchema(LenientBody):
    """``strict`` or not, the answer is held to the schema."""

    name: NonEmpty
    json_schema: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_the_schema_of_its_type(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                f"type {self.type!r} {'without' if self.json_schema is None else 'with'} "
                "json_schema; accepted: {type: text}, {type: json_object}, or "
                "{type: json_schema, json_schema: {name, schema}}"
            )
        return self

    @property
    def schema_of_answer(self) -> Schema | None:
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return ANY_OBJECT if self.type == "json_object" else None


class StructuredOutputs(Body):
    """vLLM's field: one of its keys."""

    json_schema: Schema | NonEmpty | None = Field(default=None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: NonEmpty | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("accepted: exactly one of json, json_object, regex, choice, grammar")
        return self

    @property
    def as_grammar(self) -> Grammar:
        if isinstance(self.json_schema, str):
            return Grammar(kind=GrammarKind.JSON_SCHEMA, text=self.json_schema)
        if self.regex is not None:
            return Grammar(kind=GrammarKind.REGEX, text=self.regex)
        if self.choice is not None:
            return Grammar(kind=GrammarKind.CHOICE, text=json.dumps(self.choice))
        if self.grammar is not None:
            return Grammar(kind=GrammarKind.LARK, text=self.grammar)
        return schema_grammar(self.json_schema or ANY_OBJECT)


def schema_grammar(schema: Schema) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(schema))


async def check(grammar: Grammar, param: str) -> None:
    """Raises InvalidRequestError, which names ``param``, for a grammar that no worker could
    follow, or that takes too long to be tried."""
    try:
        await asyncio.wait_for(asyncio.to_thread(check_grammar, grammar), CHECK_TIMEOUT_S)
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"{param}: {error}; accepted: what llguidance takes of {grammar.kind}", param=param
        ) from None
    except TimeoutError:
        raise InvalidRequestError(
            f"{param}: takes more than {CHECK_TIMEOUT_S:g} s to compile; accepted: a simpler one",
            param=param,
        ) from None
