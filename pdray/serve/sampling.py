"""From a checked body to the sampling of its choices."""

from __future__ import annotations

import random

from pdray.core.errors import InvalidRequestError
from pdray.core.placement import ServingLimits
from pdray.core.request import SamplingParams
from pdray.serve.openai_api import DEFAULT_COMPLETION_TOKENS, ChatBody, GenerationBody

SEED_BITS = 63


def sampling_params(
    body: GenerationBody, choice: int, num_prompt_tokens: int, limits: ServingLimits
) -> SamplingParams:
    """The sampling of one choice: each draws its own noise, given a seed or not. Raises
    InvalidRequestError."""
    seed = random.getrandbits(SEED_BITS) if body.seed is None else body.seed + choice
    max_tokens = max_tokens_of(body, num_prompt_tokens, limits)
    if body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens = {body.min_tokens} is more than max_tokens ({max_tokens}); accepted: "
            f"an integer from 0 to {max_tokens}",
            param="min_tokens",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_k=body.top_k if body.top_k > 0 else None,
        top_p=body.top_p,
        seed=seed % 2**SEED_BITS,
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple(body.bias_of_tokens.items()),
        min_tokens=body.min_tokens,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
    )


def max_tokens_of(body: GenerationBody, num_prompt_tokens: int, limits: ServingLimits) -> int:
    """What was asked for; by default all that is left for a chat, OpenAI's 16 for a completion.

    At least one: that a prompt leaves no room at all is refused where requests are placed.
    """
    left = min(limits.max_model_len, limits.max_sequence_tokens) - num_prompt_tokens
    if isinstance(body, ChatBody):
        return body.max_completion_tokens or body.max_tokens or max(left, 1)
    return body.max_tokens or max(min(left, DEFAULT_COMPLETION_TOKENS), 1)


def check_bias(body: GenerationBody, vocab_size: int) -> None:
    """Raises InvalidRequestError for a token that the model has not."""
    largest = max(body.bias_of_tokens, default=0)
    if largest >= vocab_size:
        raise InvalidRequestError(
            f"logit_bias has the token id {largest}; accepted: 0 to {vocab_size - 1}, the "
            "model's vocabulary",
            param="logit_bias",
        )
