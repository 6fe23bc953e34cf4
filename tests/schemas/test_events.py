"""The public vocabulary: its bytes stay what they are, and the docs name all of it."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from schemas import events
from schemas.events import AnyEvent, ClaimRef, DeviceRef, event_subject, event_type
from schemas.wire.codec import encode
from schemas.wire.ledger import DeviceHold

DOCS = Path(__file__).parents[2] / "docs/events.md"
CLAIM = ClaimRef("east", "u-1", "ml", "train")
GPU = DeviceHold("gpu", "gpu.example.com", "rack7", "gpu-0")
GOLDEN: list[tuple[AnyEvent, bytes, str]] = [
    (
        events.ClaimGranted(ledger_sequence=7, claim=CLAIM, devices=[GPU], pods=["p"]),
        (
            b'{"type":"dev.dragoman.claim.granted.v1","ledger_sequence":7,"claim":{"cluster":"east","uid":"u-1","namespace":'
            b'"ml","name":"train"},"devices":[{"request":"gpu","driver":"gpu.example.com","pool":"rack7","device":"gpu-0"}],'
            b'"pods":["p"]}'
        ),
        "dra.v1.events.east.claim.granted.u-1",
    ),
    (
        events.ClaimPending(ledger_sequence=8, claim=CLAIM, reason="DevicesInUse", message="all", since_ms=5),
        (
            b'{"type":"dev.dragoman.claim.pending.v1","ledger_sequence":8,"claim":{"cluster":"east","uid":"u-1","namespace":'
            b'"ml","name":"train"},"reason":"DevicesInUse","message":"all","since_ms":5}'
        ),
        "dra.v1.events.east.claim.pending.u-1",
    ),
    (
        events.ClusterEvicted(ledger_sequence=9, cluster="west", operator="ada", reason="flood", is_fenced=True),
        (
            b'{"type":"dev.dragoman.cluster.evicted.v1","ledger_sequence":9,"cluster":"west","operator":"ada","reason":'
            b'"flood","is_fenced":true}'
        ),
        "dra.v1.events.west.cluster.evicted.west",
    ),
    (
        events.DeviceTainted(
            ledger_sequence=10,
            device=DeviceRef("fabric/f", "gpu.example.com", "rack7/a", "gpu-0"),
            key="k",
            effect="NoSchedule",
        ),
        (
            b'{"type":"dev.dragoman.device.tainted.v1","ledger_sequence":10,"device":{"scope":"fabric/f","driver":'
            b'"gpu.example.com","pool":"rack7/a","device":"gpu-0"},"key":"k","effect":"NoSchedule"}'
        ),
        "dra.v1.events._.device.tainted.gpu.example.com%2Frack7%2Fa%2Fgpu-0",
    ),
]


@pytest.mark.parametrize(("event", "payload", "subject"), GOLDEN)
def test_bytes_and_subjects_stay(event: AnyEvent, payload: bytes, subject: str) -> None:
    assert encode(event) == payload
    assert msgspec.json.decode(payload, type=AnyEvent) == event
    assert event_subject(event) == subject


def test_a_field_that_a_later_build_adds_is_passed_over() -> None:
    payload = GOLDEN[0][1].replace(b'"ledger_sequence":7', b'"later":{"a":1},"ledger_sequence":7')
    assert msgspec.json.decode(payload, type=AnyEvent) == GOLDEN[0][0]


def test_the_docs_name_every_type_and_no_other() -> None:
    rows = [
        line.split("|")[1]
        for line in DOCS.read_text().splitlines()
        if line.startswith(("| `claim.", "| `device.", "| `cluster."))
    ]
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    assert named == {event_type(each).removeprefix("dev.dragoman.").removesuffix(".v1") for each in get_args(AnyEvent)}
