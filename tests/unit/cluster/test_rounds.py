from __future__ import annotations

from pdray.cluster.rounds import Round, pack_answers, pack_round, unpack_answers, unpack_round
from pdray.core.placement import (
    KeptPrefix,
    Placement,
    PrefixSource,
    Queued,
    Refusal,
    Together,
    WorkerAddress,
)
from pdray.core.request import WorkerId
from tests.fleet_factories import make_ask


def address(name: str) -> WorkerAddress:
    return WorkerAddress(worker_id=WorkerId(name), host="10.0.0.1", port=4000, link_key=b"\xff\x00")


def test_a_round_comes_as_it_went() -> None:
    told = Round(
        ended=("a", "b"),
        kept=(KeptPrefix(name=b"\xff\x00345678", num_tokens=32, worker_id=WorkerId("w")),),
        asks=(make_ask("c", prefix_names=(b"x", b"\xfe")), make_ask("d", session_id="s")),
    )
    assert unpack_round(pack_round(told)) == told


def test_answers_of_all_kinds_come_in_the_order_of_their_asks() -> None:
    answers = [
        Refusal(request_id="a", reason="too long", retry_after_s=None),
        Placement(
            request_id="b",
            prefill=address("p"),
            decode_candidates=(address("d"), address("e")),
            prefix_source=PrefixSource(address=address("f"), num_tokens=64),
            together=Together.SHORT,
        ),
        Queued(request_id="c"),
        Placement(request_id="d", prefill=None, decode_candidates=()),
        Refusal(request_id="e", reason="busy", retry_after_s=1.5),
    ]
    asks = [make_ask(answer.request_id) for answer in answers]
    assert unpack_answers(pack_answers(answers), asks) == answers
