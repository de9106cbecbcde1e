"""Tool calls by transformers' own response parsing, for tokenizers that come with a template of
their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pdray.frontend.tool_calls import AnswerPiece, CallPiece, TextPiece


class ResponseTemplateParser:
    """Over a transformers ``ResponseParser``. Calls are shown when they are whole; what is neither
    content nor a call (a model's thoughts) is not shown. A call that cannot be read stays text,
    and so does what follows it."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._num_calls = 0
        self._open_call = ""
        self._has_failed = False

    def push(self, text: str) -> list[AnswerPiece]:
        if self._has_failed:
            return [TextPiece(text)] if text else []
        return self._read(lambda: list(self._parser.feed(text)), text)

    def flush(self) -> list[AnswerPiece]:
        if self._has_failed:
            return []
        return self._read(lambda: list(self._parser.finalize()[1]), "")

    def _read(self, events: Callable[[], list[dict[str, Any]]], text: str) -> list[AnswerPiece]:
        try:
            return [piece for event in events() for piece in self._pieces(event)]
        except ValueError:
            self._has_failed = True
            return [TextPiece(self._open_call + text)]

    def _pieces(self, event: dict[str, Any]) -> list[AnswerPiece]:
        match event["type"], event["field"]:
            case "region_chunk", "content":
                return [TextPiece(event["text"])]
            case "region_chunk", "tool_calls":
                self._open_call += event["text"]
            case "region_close", "tool_calls":
                self._open_call = ""
                value = event["value"]
                calls = value if isinstance(value, list) else [value]
                return [piece for call in calls for piece in self._call(call)]
        return []

    def _call(self, call: dict[str, Any]) -> list[AnswerPiece]:
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        index = self._num_calls
        self._num_calls += 1
        return [CallPiece(index, str(function["name"]), ""), CallPiece(index, None, arguments)]
