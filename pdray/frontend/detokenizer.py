"""From tokens to text piece by piece: a character that spans tokens is never cut.

Two ways, by what the tokenizer's decoder does. Byte-level vocabularies (GPT-2 and its heirs)
name bytes, so an incremental UTF-8 decoder is exact. All others (Gemma, Llama 2) name text, and
spell what they have no name for in single bytes, ``<0xE2>``: there a token's text depends on
its neighbours only within a run of such bytes, and on whether it is the first.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

MAX_HELD_TOKENS = 32
"""A run of byte tokens is one piece of text up to this length. An invalid byte spoils the whole
run, so only its end tells; a longer run is shown in parts rather than kept from the reader."""


class IncrementalDetokenizer(Protocol):
    """The text of one sequence's tokens, as they come. Constant time a token, amortised."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens settle; special tokens have none."""

    def flush(self) -> str:
        """What was held back, at the end; an unfinished character becomes U+FFFD."""


class DetokenizerFactory:
    """Makes detokenizers for one vocabulary; what it looked up serves them all."""

    def __init__(self, tokenizer: RustTokenizer, *, shows_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._shows_special = shows_special
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        decoder = json.loads(tokenizer.to_str())["decoder"]
        self._is_byte_level = decoder is not None and decoder["type"] == "ByteLevel"
        self._bytes: dict[int, bytes] = {}
        self._spellings: dict[int, bytes] = {}
        self._byte_ids = frozenset(
            token_id
            for value in range(256)
            if (token_id := tokenizer.token_to_id(f"<0x{value:02X}>")) is not None
        )
        self.anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:]

    def create(self) -> IncrementalDetokenizer:
        return ByteDetokenizer(self) if self._is_byte_level else WindowDetokenizer(self)

    def decode(self, token_ids: list[int]) -> str:
        skips_special = not self._shows_special
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skips_special))

    def is_visible(self, token_id: int) -> bool:
        """False for special tokens, and for ids past the vocabulary that padding leaves."""
        if token_id in self._special_ids and not self._shows_special:
            return False
        return self._tokenizer.id_to_token(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        return token_id in self._byte_ids

    def token_bytes(self, token_id: int) -> bytes:
        """A byte-level token's bytes; none for a token that is not visible."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._look_up_bytes(token_id)
        return self._bytes[token_id]

    def spelling(self, token_id: int) -> bytes:
        """What the token adds to a text that has begun; a special one's own name."""
        if token_id not in self._spellings:
            self._spellings[token_id] = self._spell(token_id)
        return self._spellings[token_id]

    def _spell(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._special_ids:
            return token.encode()
        if self._is_byte_level:
            return self.token_bytes(token_id)
        if self.is_byte(token_id):
            return bytes([int(token[3:5], 16)])
        before = self.decode(self.anchor)
        return self.decode([*self.anchor, token_id])[len(before) :].encode()

    def _look_up_bytes(self, token_id: int) -> bytes:
        if not self.is_visible(token_id):
            return b""
        token = self._tokenizer.id_to_token(token_id)
        assert token is not None
        alphabet = byte_alphabet()
        if all(char in alphabet for char in token):
            return bytes(alphabet[char] for char in token)
        return token.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    alphabet = {chr(value): value for value in printable}
    return alphabet | {chr(256 + index): value for index, value in enumerate(others)}


class ByteDetokenizer:
    """For byte-level vocabularies: holds back at most the three bytes of an open character."""

    def __init__(self, factory: DetokenizerFactory) -> None:
        self._factory = factory
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        token_bytes = self._factory.token_bytes
        return self._decoder.decode(b"".join(token_bytes(i) for i in token_ids))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other vocabularies: decodes the new tokens after one settled token.

    The settled token is there because decoders drop the space that a text begins with.
    """

    def __init__(self, factory: DetokenizerFactory) -> None:
        self._factory = factory
        self._context: list[int] = []
        self._context_length = 0
        self._pending: list[int] = []

    def push(self, token_ids: Iterable[int]) -> str:
        factory, pieces = self._factory, []
        for token_id in token_ids:
            if not factory.is_visible(token_id):
                continue
            self._pending.append(token_id)
            if not factory.is_byte(token_id) or len(self._pending) >= MAX_HELD_TOKENS:
                pieces.append(self._settle(is_end=False))
        return "".join(pieces)

    def flush(self) -> str:
        return self._settle(is_end=True)

    def _settle(self, *, is_end: bool) -> str:
        if not self._pending:
            return ""
        text = self._factory.decode(self._context + self._pending)[self._context_length :]
        if text.endswith("\ufffd") and not is_end and len(self._pending) < 2 * MAX_HELD_TOKENS:
            return ""
        # A byte would join a run that begins after it, so it cannot be the settled token.
        settled = [i for i in self._pending if not self._factory.is_byte(i)]
        self._context = settled[-1:] or self._context or self._factory.anchor
        self._context_length = len(self._factory.decode(self._context))
        self._pending.clear()
        return text
