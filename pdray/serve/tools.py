"""Tools in a request body: who may be called, who must be, and what the grammar holds of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from pdray.core.errors import InvalidRequestError
from pdray.core.grammar import Grammar
from pdray.frontend.text import Tokenizer
from pdray.frontend.tool_grammar import argument_schema, tool_grammar
from pdray.serve.body import LenientBody
from pdray.serve.output_format import Schema, check, schema_grammar

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionDefinition(LenientBody):
    name: ToolName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(LenientBody):
    type: Literal["function"]
    function: FunctionDefinition

    def as_template_takes_it(self) -> dict[str, Any]:
        """With a description and parameters, which templates read without asking."""
        function = self.function
        return {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.parameters or {"type": "object", "properties": {}},
            },
        }


class FunctionName(LenientBody):
    name: str


class NamedTool(LenientBody):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
Tools = Annotated[list[Tool], Field(max_length=128)]


def check_tools(tools: list[Tool], choice: ToolChoice | None) -> None:
    """Raises InvalidRequestError where the choice is none of the tools."""
    names = [tool.function.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidRequestError(f"tools: {twice[0]!r} is there twice", param="tools")
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidRequestError("tool_choice is set without tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequestError(
            f"tool_choice names {choice.function.name!r}; accepted: {', '.join(names)}",
            param="tool_choice",
        )


async def grammar_of_calls(
    tokenizer: Tokenizer,
    tools: list[Tool],
    choice: ToolChoice | None,
    *,
    is_parallel: bool,
    answer_schema: Schema | None,
) -> Grammar | None:
    """What holds the answer to calls: to one or more of any tool where a call is required, to one
    of the named tool; with ``answer_schema``, to calls or an answer by it. None where nothing is
    asked. Raises InvalidRequestError for schemas that cannot be followed, and for models whose
    calls are not known well enough."""
    is_required = choice == "required" or isinstance(choice, NamedTool)
    if not is_required and answer_schema is None:
        return None
    syntax = tokenizer.tool_syntax
    if syntax is None:
        raise InvalidRequestError(
            "tool_choice: this model writes tool calls in a way that no call can be held to; "
            "accepted: auto or none, without response_format",
            param="tool_choice",
        )
    schemas = {}
    for index, tool in enumerate(tools):
        name = tool.function.name
        if isinstance(choice, NamedTool) and name != choice.function.name:
            continue
        schemas[name] = argument_schema(tool.function.parameters)
        param = f"tools[{index}].function.parameters"
        if schemas[name].get("type") != "object":
            raise InvalidRequestError(
                f"{param} is not of type object; accepted: a JSON schema of one", param=param
            )
        await check(schema_grammar(dict(schemas[name])), param)
    return tool_grammar(
        syntax,
        schemas,
        is_single=isinstance(choice, NamedTool) or not is_parallel,
        answer_schema=None if is_required else answer_schema,
        token_of=tokenizer.token_of,
    )
