"""KV handles: what is sealed comes back whole, and nothing else does."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.core.cluster_secret import ClusterSecret
from pdray.core.errors import HandleProblem, HandleRefusedError
from pdray.core.logprobs import TokenLogprobs
from pdray.core.parked import LeaseKey, ParkedLease, ParkedPrompt
from pdray.core.request import FinishReason, TokenChunk, WorkerId
from pdray.serve.error_bodies import failure_of
from pdray.serve.kv_handle import (
    Endpoint,
    HandlePart,
    KVHandle,
    open_handle,
    prompt_digest,
    seal,
)

OLD, NEW = ClusterSecret(b"old" * 12), ClusterSecret(b"new" * 12)
NOW = 1_000_000.0

token_ids = st.integers(0, 2**31 - 1)
logprobs = st.builds(
    TokenLogprobs,
    token_id=token_ids,
    logprob=st.floats(-100, 0),
    rank=st.integers(1, 100),
    top_token_ids=st.tuples(token_ids),
    top_logprobs=st.tuples(st.floats(-100, 0)),
)
chunks = st.builds(
    TokenChunk,
    request_id=st.text(),
    attempt=st.integers(1, 3),
    index=st.just(0),
    token_ids=st.tuples(token_ids),
    finish_reason=st.sampled_from([None, *FinishReason]),
    decode_worker_id=st.none(),
    logprobs=st.none() | st.tuples(logprobs),
    prompt_logprobs=st.none() | st.lists(logprobs, max_size=3).map(tuple),
    num_cached_tokens=st.none() | st.integers(0, 1000),
)
leases = st.builds(
    ParkedLease,
    key=st.builds(LeaseKey, lease_id=st.text(min_size=1), secret=st.binary(min_size=16)),
    secret_id=st.text(),
    owner_id=st.text(min_size=1).map(WorkerId),
    owner_host=st.sampled_from(["127.0.0.1", "::1", "node-7"]),
    owner_port=st.integers(1, 65535),
    layout_digest=st.text(),
)
parts = st.builds(
    HandlePart,
    parked=st.builds(
        ParkedPrompt, first=chunks, lease=st.none() | leases, lease_s=st.floats(0, 600)
    ),
    prompt_digest=st.lists(token_ids).map(prompt_digest),
)
handles = st.builds(
    KVHandle,
    tenant=st.none() | st.text(min_size=1),
    expires_at=st.floats(NOW + 1, NOW + 600),
    endpoint=st.sampled_from(Endpoint),
    body=st.binary(max_size=300),
    parts=st.lists(parts, max_size=3).map(tuple),
)


def problem_of(text: str, *secrets: ClusterSecret, tenant: str | None, now: float = NOW) -> str:
    with pytest.raises(HandleRefusedError) as refused:
        open_handle(text, secrets, tenant=tenant, now=now)
    assert refused.value.param == "kv_handle"
    return refused.value.problem


@given(handles, st.sampled_from([OLD, NEW]))
def test_a_handle_comes_back_whole_by_any_secret_that_is_taken(
    handle: KVHandle, secret: ClusterSecret
) -> None:
    text = seal(handle, secret)
    assert open_handle(text, (NEW, OLD), tenant=handle.tenant, now=NOW) == handle


@given(handles, st.data())
def test_any_changed_byte_is_refused(handle: KVHandle, data: st.DataObject) -> None:
    sealed = bytearray(base64.urlsafe_b64decode(pad(seal(handle, NEW))))
    index = data.draw(st.integers(0, len(sealed) - 1))
    sealed[index] ^= data.draw(st.integers(1, 255))
    text = base64.urlsafe_b64encode(bytes(sealed)).decode().rstrip("=")
    assert problem_of(text, NEW, OLD, tenant=handle.tenant) == HandleProblem.FORGED


@given(handles, st.data())
def test_any_changed_character_is_refused(handle: KVHandle, data: st.DataObject) -> None:
    text = seal(handle, NEW)
    index = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda char: char != text[index]))
    changed = text[:index] + other + text[index + 1 :]
    assert problem_of(changed, NEW, tenant=handle.tenant) == HandleProblem.FORGED


@given(handles, st.data())
def test_a_part_of_a_handle_or_more_than_one_is_refused(
    handle: KVHandle, data: st.DataObject
) -> None:
    text = seal(handle, NEW)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    for changed in (cut, text + "A", text + "=", text + text):
        assert problem_of(changed, NEW, tenant=handle.tenant) == HandleProblem.FORGED


@given(st.text())
def test_text_that_is_no_handle_is_refused(text: str) -> None:
    assert problem_of(text, NEW, tenant=None) == HandleProblem.FORGED


@given(handles)
def test_a_secret_that_is_not_taken_any_more_is_refused(handle: KVHandle) -> None:
    assert problem_of(seal(handle, OLD), NEW, tenant=handle.tenant) == HandleProblem.FORGED


@given(handles, st.none() | st.text(min_size=1))
def test_it_is_its_tenants_alone(handle: KVHandle, tenant: str | None) -> None:
    if tenant == handle.tenant:
        return
    assert problem_of(seal(handle, NEW), NEW, tenant=tenant) == HandleProblem.FOREIGN


@given(handles)
def test_it_expires(handle: KVHandle) -> None:
    text, tenant = seal(handle, NEW), handle.tenant
    just_before = handle.expires_at - 0.001
    assert open_handle(text, (NEW,), tenant=tenant, now=just_before) == handle
    assert problem_of(text, NEW, tenant=tenant, now=handle.expires_at) == HandleProblem.EXPIRED


def test_each_problem_has_a_status_of_its_own() -> None:
    failures = [failure_of(HandleRefusedError("no", problem=problem)) for problem in HandleProblem]
    assert [failure.status for failure in failures] == [400, 403, 410, 409]
    assert [failure.body.error.code for failure in failures] == list(HandleProblem)


def test_the_prompts_digest_tells_prompts_apart() -> None:
    prompts = [[], [1], [1, 2], [2, 1], [258], [0], [0, 0]]
    assert len({prompt_digest(prompt) for prompt in prompts}) == len(prompts)


def pad(text: str) -> str:
    return text + "=" * (-len(text) % 4)
