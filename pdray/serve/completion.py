"""From a checked body to its answer, whole or as chunks. Knows neither HTTP nor Ray.

Several prompts and n choices of each are requests that run together.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from uuid import uuid4

from pdray.core.errors import InvalidRequestError, ModelNotFoundError
from pdray.core.placement import ServingLimits
from pdray.core.request import Request, SamplingParams
from pdray.frontend.check_fits import check_fits
from pdray.frontend.text import Tokenizer
from pdray.frontend.text_stream import TextDelta, TokenSource, stream_text
from pdray.serve.answers import (
    Answer,
    ChatAnswer,
    Echo,
    Heading,
    LogprobsWriters,
    TextAnswer,
    Transcript,
)
from pdray.serve.call_timelines import CallTimelines
from pdray.serve.choices import read_together
from pdray.serve.logprobs import LogprobsWriter
from pdray.serve.openai_api import ChatBody, CompletionBody, GenerationBody
from pdray.serve.openai_responses import Chunk, Response, Usage
from pdray.serve.prompting import Prompting, prompt_of
from pdray.serve.sampling import check_bias, sampling_params

MAX_CHOICES = 256
"""Prompts times n, of one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One API call, ready to run: a request for each choice. Runs once."""

    requests: tuple[Request, ...]
    num_choices: int
    """Of each prompt: their requests stand together."""
    num_prompt_tokens: int
    stop: tuple[str, ...]
    is_stop_shown: bool
    tokenizer: Tokenizer
    answer: Answer
    has_usage_chunk: bool
    source: TokenSource
    timelines: CallTimelines


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Chunks that are ready together, and leave in one write."""

    chunks: tuple[Chunk, ...]
    is_last: bool


@dataclass(slots=True)
class _Spent:
    """What a job has used so far, and its choices' timelines. Of a prompt's choices the one that
    found the least in a prefix cache says how much of it was there before: the others found what
    that one had just computed."""

    job: Job
    num_output_tokens: int = 0
    num_cached_tokens: dict[int, int] = field(default_factory=dict)

    def add(self, index: int, delta: TextDelta) -> None:
        self.num_output_tokens += delta.num_tokens
        if delta.timeline is not None:
            self.job.timelines.by_choice[index] = delta.timeline
        if delta.num_cached_tokens is not None:
            prompt = index // self.job.num_choices
            known = self.num_cached_tokens.get(prompt, delta.num_cached_tokens)
            self.num_cached_tokens[prompt] = min(known, delta.num_cached_tokens)

    @property
    def usage(self) -> Usage:
        num_cached = sum(self.num_cached_tokens.values())
        return Usage.of(self.job.num_prompt_tokens, self.num_output_tokens, num_cached)


class CompletionService:
    """One model's completions and chats over one source of tokens."""

    def __init__(
        self,
        source: TokenSource,
        tokenizer: Tokenizer,
        *,
        model_name: str,
        limits: Callable[[], Awaitable[ServingLimits]],
        max_output_tokens: int | None = None,
    ) -> None:
        """Requests are made for ``max_output_tokens`` at most, whatever their bodies ask for."""
        self.model_name = model_name
        self.limits = limits
        self._source = source
        self._tokenizer = tokenizer
        self._max_output_tokens = max_output_tokens

    async def prepare(
        self, body: GenerationBody, tenant: str | None, timelines: CallTimelines | None = None
    ) -> Job:
        """Tokenizes, for a tenant whose KV is nobody else's. Raises InvalidRequestError,
        ModelNotFoundError, UnavailableError."""
        timelines = timelines or CallTimelines()
        if body.model != self.model_name:
            raise ModelNotFoundError(
                f"model = {body.model!r} is not served here; accepted: {self.model_name!r}",
                param="model",
                code="model_not_found",
            )
        prompting = await prompt_of(body, self._tokenizer)
        prompts = prompting.prompts
        self._check_token_ids(prompts, "messages" if isinstance(body, ChatBody) else "prompt")
        check_bias(body, self._tokenizer.vocab_size)
        if len(prompts) * body.n > MAX_CHOICES:
            raise InvalidRequestError(
                f"n = {body.n} choices of {len(prompts)} prompts; accepted: up to {MAX_CHOICES} "
                "choices in all",
                param="n",
            )
        timelines.begin(len(prompts) * body.n, is_stream=body.stream)
        limits = await self.limits()
        job_id = f"{'chatcmpl' if isinstance(body, ChatBody) else 'cmpl'}-{uuid4().hex}"
        requests = tuple(
            Request(
                request_id=f"{job_id}-{index * body.n + choice}",
                prompt_token_ids=prompt,
                output_token_ids=(),
                sampling=self._capped(
                    replace(
                        sampling_params(body, choice, len(prompt), limits),
                        grammar=prompting.grammar,
                    )
                ),
                cache_salt=salt_of(tenant, body.cache_salt),
                session_id=body.session_id,
                priority=body.priority,
            )
            for index, prompt in enumerate(prompts)
            for choice in range(body.n)
        )
        for request in requests:
            check_fits_body(request, limits, body)
        return Job(
            requests=requests,
            num_choices=body.n,
            num_prompt_tokens=sum(map(len, prompts)),
            stop=body.stop_strings,
            is_stop_shown=body.include_stop_str_in_output,
            tokenizer=prompting.tokenizer,
            answer=self._answer(body, job_id, prompting),
            has_usage_chunk=body.has_usage_chunk,
            source=self._source,
            timelines=timelines,
        )

    async def complete(self, job: Job) -> Response:
        """The whole answer. Cancelled, it cancels its requests. Raises what the source does."""
        transcripts, spent = [Transcript() for _ in job.requests], _Spent(job)
        async with aclosing(self._read(job)) as bundles:
            async for bundle in bundles:
                for index, delta in bundle:
                    transcripts[index].add(delta)
                    spent.add(index, delta)
        return job.answer.whole(transcripts, spent.usage)

    async def stream(self, job: Job) -> AsyncGenerator[Bundle, None]:
        """Closing it cancels the requests. Raises what the source does."""
        spent, num_open = _Spent(job), len(job.requests)
        async with aclosing(self._read(job)) as bundles:
            async for bundle in bundles:
                chunks: list[Chunk] = []
                for index, delta in bundle:
                    chunks += job.answer.chunks(index, delta)
                    spent.add(index, delta)
                    num_open -= delta.finish_reason is not None
                if num_open == 0 and job.has_usage_chunk:
                    chunks.append(job.answer.usage_chunk(spent.usage))
                if num_open == 0 and job.timelines.is_wanted:
                    chunks.append(job.answer.timeline_chunk(job.timelines.sent()))
                if chunks:
                    yield Bundle(chunks=tuple(chunks), is_last=num_open == 0)

    def _read(self, job: Job) -> AsyncGenerator[list[tuple[int, TextDelta]], None]:
        return read_together(
            [
                stream_text(
                    job.source,
                    job.tokenizer,
                    request,
                    job.stop,
                    is_stop_shown=job.is_stop_shown,
                )
                for request in job.requests
            ]
        )

    def _capped(self, sampling: SamplingParams) -> SamplingParams:
        if self._max_output_tokens is None or sampling.max_tokens <= self._max_output_tokens:
            return sampling
        return replace(sampling, max_tokens=self._max_output_tokens)

    def _check_token_ids(self, prompts: Sequence[tuple[int, ...]], param: str) -> None:
        """Raises InvalidRequestError for a token that the model cannot look up."""
        largest = max(max(prompt, default=0) for prompt in prompts)
        if largest >= self._tokenizer.vocab_size:
            raise InvalidRequestError(
                f"{param} has the token id {largest}; accepted: 0 to "
                f"{self._tokenizer.vocab_size - 1}, the model's vocabulary",
                param=param,
            )

    def _answer(self, body: GenerationBody, job_id: str, prompting: Prompting) -> Answer:
        heading = Heading(
            id=job_id,
            created=int(time.time()),
            model=self.model_name,
            has_usage_chunk=body.has_usage_chunk,
        )
        writers = LogprobsWriters(
            output=self._logprobs_writer(body.num_logprobs),
            prompt=self._logprobs_writer(body.prompt_logprobs),
        )
        if isinstance(body, ChatBody):
            return ChatAnswer(heading, writers, prompting.make_parser)
        return TextAnswer(heading, self._echoes(body, prompting.prompts), writers)

    def _logprobs_writer(self, num_top: int | None) -> LogprobsWriter | None:
        return None if num_top is None else LogprobsWriter(self._tokenizer, num_top)

    def _echoes(
        self, body: CompletionBody, prompts: Sequence[tuple[int, ...]]
    ) -> list[Echo | None]:
        echoes = [
            Echo(given if isinstance(given, str) else self._tokenizer.decode(token_ids), token_ids)
            for given, token_ids in zip(body.prompts, prompts, strict=True)
        ]
        return [echo if body.echo else None for echo in echoes for _ in range(body.n)]


def check_fits_body(request: Request, limits: ServingLimits, body: GenerationBody) -> None:
    """As the frontend does, but all requests before any runs, and with the body's own words."""
    try:
        check_fits(request, limits)
    except InvalidRequestError as error:
        names = {"prompt": "messages"} if isinstance(body, ChatBody) else {}
        if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        param = names.get(error.param or "", error.param)
        raise InvalidRequestError(str(error), param=param, code=error.code) from None


def salt_of(tenant: str | None, cache_salt: str | None) -> str | None:
    """The prefix cache's salt: tenants share no KV, whatever salts they send. No two pairs have
    the same, as a tenant's name has no slash."""
    if tenant is None:
        return cache_salt
    return tenant if cache_salt is None else f"{tenant}/{cache_salt}"
