"""What a request's prefixes are called at the controller: as workers call theirs, but shorter."""

from __future__ import annotations

from collections.abc import Sequence

from pdray.core.placement import KeptPrefix
from pdray.core.prefix_report import PREFIX_NAME_BYTES
from pdray.core.request import Request, WorkerId
from pdray.kvcache.prefix_hash import HASH_TOKENS, PrefixHasher


class PrefixNames:
    """Names of one request's prefixes, of every 16 tokens with all before them: of the prompt and
    what earlier attempts have put behind it."""

    def __init__(self, request: Request, model_digest: str) -> None:
        self.model_digest = model_digest
        self._hasher = PrefixHasher(model_digest)
        self._parent = self._hasher.root(request.cache_salt)
        self._token_ids = request.prompt_token_ids + request.output_token_ids
        self._hashes = self._hasher.chain(self._parent, self._token_ids)

    @property
    def names(self) -> bytes:
        """One behind the other, as a PlacementAsk has them."""
        return b"".join([prefix[:PREFIX_NAME_BYTES] for prefix in self._hashes])

    def kept_by(self, worker_id: WorkerId, token_ids: Sequence[int]) -> list[KeptPrefix]:
        """What is left in the prefix cache of the worker that made ``token_ids``: the prefixes at
        the request's end, and at the prompt's, as another answer may follow that."""
        num_hashes = len(self._hashes)
        # The newest token was not computed any more.
        rest = (*self._token_ids[num_hashes * HASH_TOKENS :], *token_ids[:-1])
        parent = self._hashes[-1] if self._hashes else self._parent
        hashes = [*self._hashes, *self._hasher.chain(parent, rest)]
        return [
            KeptPrefix(
                name=hashes[count - 1][:PREFIX_NAME_BYTES],
                num_tokens=count * HASH_TOKENS,
                worker_id=worker_id,
            )
            for count in sorted({num_hashes, len(hashes)} - {0})
        ]
