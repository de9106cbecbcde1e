"""Whether a request could ever be held by the workers that are up."""

from __future__ import annotations

from pdray.core.errors import InvalidRequestError
from pdray.core.placement import ServingLimits
from pdray.core.request import Request


def check_fits(request: Request, limits: ServingLimits) -> None:
    """Raises InvalidRequestError for a request that no worker could ever hold."""
    num_prompt, max_tokens = request.num_prompt_tokens, request.sampling.max_tokens
    code = "context_length_exceeded"
    if num_prompt == 0:
        raise InvalidRequestError(
            "the prompt is empty: at least one token is needed", param="prompt"
        )
    if num_prompt >= limits.max_model_len or request.max_total_tokens > limits.max_model_len:
        raise InvalidRequestError(
            f"this model's context is {limits.max_model_len} tokens; the prompt has {num_prompt} "
            f"and max_tokens asks for {max_tokens}: shorten either",
            param="prompt" if num_prompt >= limits.max_model_len else "max_tokens",
            code=code,
        )
    if request.max_total_tokens > limits.max_sequence_tokens:
        raise InvalidRequestError(
            f"prompt ({num_prompt}) and max_tokens ({max_tokens}) need {request.max_total_tokens} "
            f"tokens of KV memory; a worker here holds {limits.max_sequence_tokens}",
            param="max_tokens",
            code=code,
        )
