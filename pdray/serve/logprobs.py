"""Logprobs in OpenAI's words, and prompt logprobs in vLLM's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pdray.core.logprobs import TokenLogprobs
from pdray.frontend.text import Tokenizer
from pdray.serve.openai_responses import (
    ChatLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
)

MIN_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has not."""


class LogprobsWriter:
    """Of tokens with ``num_top`` likeliest ones each; they may have more."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top

    def text(
        self, logprobs: Sequence[TokenLogprobs], text_offsets: Sequence[int], shift: int
    ) -> TextLogprobs:
        """``shift`` is what stands before the text that the offsets are in."""
        return TextLogprobs(
            tokens=[self._name(each.token_id) for each in logprobs],
            token_logprobs=[bounded(each.logprob) for each in logprobs],
            top_logprobs=[self._tops_by_name(each) for each in logprobs],
            text_offset=[shift + offset for offset in text_offsets],
        )

    def echo(self, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> TextLogprobs:
        """Of a prompt that stands before its completion; ``logprobs`` begin at its second
        token."""
        detokenizer, offsets, offset = self._tokenizer.detokenizer(), [], 0
        for token_id in prompt:
            offsets.append(offset)
            offset += len(detokenizer.push((token_id,)))
        rest = self.text(logprobs, offsets[1:], 0)
        return TextLogprobs(
            tokens=[self._name(prompt[0]), *rest.tokens],
            token_logprobs=[None, *rest.token_logprobs],
            top_logprobs=[None, *rest.top_logprobs],
            text_offset=offsets,
        )

    def chat(self, logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
        content = [
            TokenLogprob(
                token=self._name(each.token_id),
                logprob=bounded(each.logprob),
                bytes=list(self._tokenizer.spelling(each.token_id)),
                top_logprobs=[
                    TopLogprob(
                        token=self._name(token_id),
                        logprob=logprob,
                        bytes=list(self._tokenizer.spelling(token_id)),
                    )
                    for token_id, logprob in self._tops(each)
                ],
            )
            for each in logprobs
        ]
        return ChatLogprobs(content=content)

    def prompt(self, logprobs: Sequence[TokenLogprobs]) -> PromptLogprobs:
        return [None, *map(self._by_token_id, logprobs)]

    def _by_token_id(self, each: TokenLogprobs) -> dict[str, PromptLogprob]:
        ranked = [
            (token_id, logprob, rank)
            for rank, (token_id, logprob) in enumerate(self._tops(each), start=1)
        ]
        ranked.append((each.token_id, bounded(each.logprob), each.rank))
        return {
            str(token_id): PromptLogprob(
                logprob=logprob, rank=rank, decoded_token=self._name(token_id)
            )
            for token_id, logprob, rank in ranked
        }

    def _tops(self, each: TokenLogprobs) -> Iterator[tuple[int, float]]:
        tops = zip(each.top_token_ids, each.top_logprobs, strict=True)
        for (token_id, logprob), _ in zip(tops, range(self._num_top), strict=False):
            yield token_id, bounded(logprob)

    def _tops_by_name(self, each: TokenLogprobs) -> dict[str, float]:
        tops = {self._name(token_id): logprob for token_id, logprob in self._tops(each)}
        return tops | {self._name(each.token_id): bounded(each.logprob)}

    def _name(self, token_id: int) -> str:
        """As OpenAI spells a token that is no whole characters: its bytes."""
        spelling = self._tokenizer.spelling(token_id)
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def bounded(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
