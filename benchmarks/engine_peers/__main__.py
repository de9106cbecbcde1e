"""One engine in this process: prints a JSON line for each case, ``{"case": ..., "seconds": ...}``.
``limits`` prints what the machine can do instead."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.engine_peers.cases import CASES, Peer, measure

PEERS = ("limits", "pdray", "transformers", "transformers-batching", "vllm")


def report(case: str, seconds: float) -> None:
    print(json.dumps({"case": case, "seconds": seconds}), flush=True)


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
    args = parser.parse_args()
    if args.peer == "limits":
        from benchmarks.engine_peers.limits import measure_limits

        measure_limits(args.model, args.dtype, args.threads, report)
        return
    measure(make_peer(args.peer, args.model, args.dtype, args.threads), CASES, report)


if __name__ == "__main__":
    main()
