"""API keys: what a file of them may hold, and whom they let in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx
import openai
import pytest

from pdray.cli.main import main
from pdray.core.errors import AuthenticationError, ConfigError
from pdray.core.request import FinishReason, Request
from pdray.serve.completion import salt_of
from pdray.serve.keys import KeyEntry, KeyRing, new_key, read_keys, tenant_of
from tests.scripted_source import Script, ScriptedSource, spelled
from tests.unit.serve.conftest import MODEL, OpenApi, OpenServer

COMPLETION = {"model": MODEL, "prompt": "Hi", "max_tokens": 8}


def abc(request: Request) -> Script:
    return spelled([ord(char) - ord("!") for char in "abc"], FinishReason.LENGTH)


def write(path: Path, *entries: KeyEntry) -> None:
    path.write_text("".join(f"{entry.line}\n" for entry in entries))


def test_the_command_makes_a_key_whose_entry_is_a_line_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.yaml"
    keys = []
    for tenant in ("acme", "acme", "globex"):
        assert main(["key", "new", "--tenant", tenant]) == 0
        printed = capsys.readouterr()
        with path.open("a") as file:
            file.write(printed.out)
        keys.append(printed.err.strip())
    entries = read_keys(path)
    assert [tenant_of(key, entries) for key in keys] == ["acme", "acme", "globex"]
    assert [entry.digest for entry in entries] == [
        hashlib.sha256(key.encode()).digest() for key in keys
    ]
    assert not any(key in path.read_text() for key in keys)


def test_a_tenants_name_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", "--tenant", "a/b"]) == 1
    assert "'a/b': should have lower-case letters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no list of {tenant, sha256}"),
        ("[]", "no list of {tenant, sha256}"),
        ("- {tenant: a}", "entry 1: sha256: is missing"),
        ("- {tenant: a, sha256: '12'}", "sha256: should have 64 digits"),
        ("- {tenant: A, sha256: '12'}", "tenant = 'A'"),
        ("- {tenant: a, sha256: '12', key: x}", "key: unknown key"),
        ("- a: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_good_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"keys\.yaml") as caught:
        read_keys(path)
    assert words in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        KeyRing(tmp_path / "none.yaml")


def test_a_changed_file_counts_from_the_next_request_on(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    old_key, old = new_key("acme")
    added_key, added = new_key("globex")
    write(path, old)
    ring = KeyRing(path)
    assert ring.tenant_of(f"Bearer {old_key}") == "acme"
    write(path, old, added)
    assert ring.tenant_of(f"bearer {added_key}") == "globex"
    write(path, added)
    with pytest.raises(AuthenticationError, match="not known"):
        ring.tenant_of(f"Bearer {old_key}")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_goes_bad_leaves_the_keys_as_they_were(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "keys.yaml"
    key, entry = new_key("acme")
    write(path, entry)
    ring = KeyRing(path)
    if is_there:
        path.write_text("- nonsense")
    else:
        os.remove(path)
    assert ring.tenant_of(f"Bearer {key}") == "acme"


def test_no_two_pairs_of_tenant_and_salt_share_a_salt() -> None:
    pairs = [("a", None), ("a", "b"), ("a", "b/c"), ("b", None), ("ab", None), ("a", "a")]
    salts = [salt_of(tenant, salt) for tenant, salt in pairs]
    assert len(set(salts)) == len(pairs)
    assert salt_of(None, None) is None
    assert salt_of(None, "b") == "b"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer pdray-wrong"]
)
async def test_without_a_known_key_nothing_runs(
    open_api: OpenApi, tmp_path: Path, header: str | None
) -> None:
    path = tmp_path / "keys.yaml"
    write(path, new_key("acme")[1])
    source = ScriptedSource(abc)
    headers = {} if header is None else {"Authorization": header}
    async with open_api(source, keys=KeyRing(path)) as client:
        answers = [
            await client.post("/v1/completions", json=COMPLETION, headers=headers),
            await client.post("/v1/chat/completions", content=b"no JSON", headers=headers),
            await client.get("/v1/models", headers=headers),
            await client.get(f"/v1/models/{MODEL}", headers=headers),
        ]
        assert (await client.get("/health", headers=headers)).status_code == 200
        assert (await client.get("/metrics", headers=headers)).status_code == 200
    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert error["code"] == "invalid_api_key"
        assert error["type"] == "invalid_request_error"
    assert source.requests == []


async def test_the_openai_client_comes_in_with_its_key_and_its_tenants_salt(
    open_server: OpenServer, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    keys, entries = zip(*(new_key(tenant) for tenant in ("acme", "globex")), strict=True)
    write(path, *entries)
    source = ScriptedSource(abc)
    async with open_server(source, keys=KeyRing(path)) as url:

        def client_of(key: str) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

        for key in keys:
            async with client_of(key) as client:
                answer = await client.completions.create(
                    model=MODEL, prompt="Hi", extra_body={"cache_salt": "mine"}
                )
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}]
                )
                assert answer.choices[0].text == "abc"
                assert [model.id for model in (await client.models.list()).data] == [MODEL]
        async with client_of("pdray-stolen") as client:
            with pytest.raises(openai.AuthenticationError, match="not known here") as refused:
                await client.completions.create(model=MODEL, prompt="Hi")
    assert refused.value.code == "invalid_api_key"
    salts = [request.cache_salt for request in source.requests]
    assert salts == ["acme/mine", "acme", "globex/mine", "globex"]


async def test_without_a_file_any_key_or_none_is_let_in(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        for headers in ({}, {"Authorization": "Bearer none"}):
            answer: httpx.Response = await client.post(
                "/v1/completions", json=COMPLETION, headers=headers
            )
            assert answer.status_code == 200
    assert [request.cache_salt for request in source.requests] == [None, None]
