"""One engine in this process: prints a JSON line for each case, ``{"case": ..., "seconds": ...}``.
``limits`` prints what the machine can do instead. With ``--prefix-lengths``, an engine's prefix
cache is asked, and every line says how many tokens were in it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine_peers.cases import CASES, VOCAB_SIZE, Peer, measure
from benchmarks.engine_peers.prefixes import (
    Answer,
    PrefixPeer,
    measure_prefixes,
)

PREFIX_PEERS = ("pdray", "vllm")
PEERS = ("limits", "pdray", "transformers", "transformers-batching", "vllm")


def report(case: str, seconds: float) -> None:
    print(json.dumps({"case": case, "seconds": seconds}), flush=True)


def report_answer(num_tokens: int, kind: str, answer: Answer) -> None:
    line = {"case": kind, "num_tokens": num_tokens, **asdict(answer)}
    print(json.dumps(line), flush=True)


def make_prefix_peer(
    name: str, model: Path, dtype: str, num_threads: int, max_model_len: int
) -> PrefixPeer:
    if name == "pdray":
        from benchmarks.engine_peers.pdray_engine import PdrayPeer

        return PdrayPeer(model, dtype, num_threads, max_model_len=max_model_len)
    from benchmarks.engine_peers.vllm_engine import VllmPeer

    return VllmPeer(
        str(model), dtype, num_threads, max_model_len=max_model_len, has_prefix_cache=True
    )


def make_peer(name: str, model: Path, dtype: str, num_threads: int) -> Peer:
    if name == "pdray":
        from benchmarks.engine_peers.pdray_engine import PdrayPeer

        return PdrayPeer(model, dtype, num_threads)
    if name == "transformers":
        from benchmarks.engine_peers.transformers_forward import TransformersForwardPeer

        return TransformersForwardPeer(model, dtype, num_threads)
    if name == "transformers-batching":
        from benchmarks.engine_peers.transformers_batching import TransformersBatchingPeer

        return TransformersBatchingPeer(model, dtype, num_threads)
    from benchmarks.engine_peers.vllm_engine import VllmPeer

    return VllmPeer(str(model), dtype, num_threads)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prefix-lengths", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=3, help="of the prefixes")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="of their prompts")
    args = parser.parse_args()
    if args.prefix_lengths:
        max_model_len = max(args.prefix_lengths) + 1
        prefix_peer = make_prefix_peer(
            args.peer, args.model, args.dtype, args.threads, max_model_len
        )
        measure_prefixes(
            prefix_peer, args.prefix_lengths, args.repeats, args.vocab_size, report_answer
        )
        return
    if args.peer == "limits":
        from benchmarks.engine_peers.limits import measure_limits

        measure_limits(args.model, args.dtype, args.threads, report)
        return
    measure(make_peer(args.peer, args.model, args.dtype, args.threads), CASES, report)


if __name__ == "__main__":
    main()
