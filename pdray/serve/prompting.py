"""From a body to what the model is given, what its answer is held to, and how that is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdray.core.errors import InvalidRequestError
from pdray.core.grammar import Grammar
from pdray.frontend.text import Tokenizer
from pdray.frontend.tool_calls import AnswerParser
from pdray.serve.chat_messages import turns_of
from pdray.serve.openai_api import ChatBody, GenerationBody
from pdray.serve.output_format import Schema, check, schema_grammar
from pdray.serve.tools import check_tools, grammar_of_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    """``tokenizer`` makes the answer's text; ``make_parser`` is None where that is all text."""

    prompts: tuple[tuple[int, ...], ...]
    grammar: Grammar | None
    tokenizer: Tokenizer
    make_parser: Callable[[], AnswerParser] | None


async def prompt_of(body: GenerationBody, tokenizer: Tokenizer) -> Prompting:
    """Raises InvalidRequestError."""
    if isinstance(body, ChatBody):
        check_tools(body.tools, body.tool_choice)
        if body.offers_tools:
            return await _with_tools(body, tokenizer)
        prompts = [await tokenizer.chat(turns_of(body.messages))]
    else:
        prompts = [
            await tokenizer.encode(each) if isinstance(each, str) else each for each in body.prompts
        ]
    return Prompting(
        prompts=tuple(map(tuple, prompts)),
        grammar=await _format_grammar(body),
        tokenizer=tokenizer,
        make_parser=None,
    )


async def _with_tools(body: ChatBody, tokenizer: Tokenizer) -> Prompting:
    tools = [tool.as_template_takes_it() for tool in body.tools]
    text = tokenizer.render_chat(turns_of(body.messages), tools)
    make_parser = tokenizer.answer_parsers(text, tools)
    grammar = await grammar_of_calls(
        tokenizer,
        body.tools,
        body.tool_choice,
        is_parallel=body.parallel_tool_calls,
        answer_schema=await _schema_beside_tools(body),
    )
    check_has_an_end(body, grammar)
    return Prompting(
        prompts=(tuple(await tokenizer.encode_chat(text)),),
        grammar=grammar,
        tokenizer=tokenizer.with_special_tokens() if tokenizer.has_response_template else tokenizer,
        make_parser=make_parser,
    )


async def _schema_beside_tools(body: ChatBody) -> Schema | None:
    """Of an answer that is no call."""
    if body.structured_outputs is not None:
        raise InvalidRequestError(
            "structured_outputs together with tools; accepted: with tool_choice: none, or "
            "response_format in its place",
            param="structured_outputs",
        )
    schema = None if body.response_format is None else body.response_format.schema_of_answer
    if schema is not None:
        await check(schema_grammar(schema), "response_format")
    return schema


async def _format_grammar(body: GenerationBody) -> Grammar | None:
    schema = None if body.response_format is None else body.response_format.schema_of_answer
    if body.structured_outputs is not None:
        if schema is not None:
            raise InvalidRequestError(
                "structured_outputs together with response_format; accepted: one of them",
                param="structured_outputs",
            )
        grammar, param = body.structured_outputs.as_grammar, "structured_outputs"
    elif schema is not None:
        grammar, param = schema_grammar(schema), "response_format"
    else:
        return None
    check_has_an_end(body, grammar)
    await check(grammar, param)
    return grammar


def check_has_an_end(body: GenerationBody, grammar: Grammar | None) -> None:
    """Raises InvalidRequestError where the end of what the grammar holds would be ignored."""
    if grammar is not None and body.ignore_eos:
        raise InvalidRequestError(
            "ignore_eos = true together with an answer of a given form; accepted: false",
            param="ignore_eos",
        )
