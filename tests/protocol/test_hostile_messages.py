"""Messages that no agent of ours sends: each is named and kept aside, and everything else goes on without it.

Whoever has the credential of east's agent can publish them, and needs neither bug nor malice in Kubernetes for some.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zstandard

from schemas.wire.bus import CONTENT_ENCODING
from schemas.wire.codec import encode
from schemas.wire.ledger import Allocate
from schemas.wire.state import (
    ClaimState,
    Consumer,
    ObjectName,
    ObjectState,
    Outcome,
    Rejected,
    Settled,
    SyncFinished,
    SyncPart,
)
from tests.protocol.harness import POOL, Stage
from tests.simulation.cluster import DRIVER, a_claim, a_class, a_slice, an_allocation

LETTER_BYTES_MAX = 1024 * 1024  # of what the server takes
LONG = "x" * 3_000_000
STATE = "dra.v1.state.east"
EVIL = f"{STATE}.claim.evil"
GARBAGE = bytes(range(256)) * 3_600
DEEP = b"[" * 100_000 + b"]" * 100_000

Made = tuple[str, bytes, dict[str, str]]  # subject, payload, headers
Make = Callable[[int], Made]  # given the epoch of east's agent


def raw(text: bytes, subject: str = EVIL, **headers: str) -> Make:
    """Bytes, as they are."""
    return lambda _: (subject, text, headers)


def packed(text: bytes, subject: str = EVIL) -> Make:
    """Bytes, compressed."""
    payload = zstandard.ZstdCompressor().compress(text)
    return lambda _: (subject, payload, {CONTENT_ENCODING: "zstd"})


def a_state(claim: dict[str, Any] | bytes | None = None, **fields: Any) -> Make:
    """A claim's message, well-formed but for what is given."""
    if claim is None:
        claim = evil_claim()
    body = claim if isinstance(claim, bytes) else msgspec.json.encode(claim)
    state: dict[str, Any] = {"resource_version": "7", **fields}
    return lambda epoch: (EVIL, encode(ClaimState(agent_epoch=epoch, claim=msgspec.Raw(body), **state)), {})


def an_object(kind: str, obj: dict[str, Any] | bytes) -> Make:
    """Another object's message."""
    body = obj if isinstance(obj, bytes) else msgspec.json.encode(obj)
    message = {"object": msgspec.Raw(body), "resource_version": "7"}
    return lambda epoch: (f"{STATE}.{kind}.evil", encode(ObjectState(agent_epoch=epoch, **message)), {})  # type: ignore[arg-type]  # two kinds of value


def evil_claim(**metadata: Any) -> dict[str, Any]:
    """A claim that would be allocated if it were well."""
    made = a_claim("evil")
    made["metadata"].update({"uid": "evil", **metadata})
    return made


def with_request(**exactly: Any) -> dict[str, Any]:
    """A claim whose request says something else."""
    made = evil_claim()
    made["spec"]["devices"]["requests"][0]["exactly"].update(exactly)
    return made


def with_results(count: int, **result: str) -> dict[str, Any]:
    """A claim that shows an allocation of so many devices."""
    allocation = an_allocation((POOL, f"e{index}") for index in range(count))
    for each in allocation["devices"]["results"]:
        each.update(result)
    return {**evil_claim(), "status": {"allocation": allocation}}


def settled(sequence: int, outcome: Outcome = "Applied", message: str = "") -> Settled:
    return Settled(sequence, outcome, message)


def pods(count: int, name: str = "p") -> list[Consumer]:
    return [Consumer(f"{name}{index}", f"{name}{index}") for index in range(count)]


KEPT_ASIDE = [
    pytest.param(raw(DEEP), "Malformed", id="nothing but brackets"),
    pytest.param(a_state(DEEP), "NotJSON", id="a claim that is nested 100,000 deep"),
    pytest.param(a_state(b'{"metadata":' + DEEP + b"}"), "NotJSON", id="metadata nested 100,000 deep"),
    pytest.param(an_object("slice", DEEP), "NotJSON", id="a slice nested 100,000 deep"),
    pytest.param(raw(DEEP, f"{STATE}.agent.run"), "Malformed", id="an agent's message of nothing but brackets"),
    pytest.param(raw(GARBAGE), "NotJSON", id="900 kB of garbage"),
    pytest.param(raw(GARBAGE, f"{STATE}.slice.s"), "NotJSON", id="garbage about a slice"),
    pytest.param(raw(GARBAGE, f"{STATE}.agent.run"), "NotJSON", id="garbage from the agent itself"),
    pytest.param(raw(GARBAGE, **{CONTENT_ENCODING: "zstd"}), "Malformed", id="garbage that claims to be compressed"),
    pytest.param(raw(b"{}", **{CONTENT_ENCODING: "br"}), "Malformed", id="an encoding that nobody knows"),
    pytest.param(packed(b" " * 100_000_000), "Malformed", id="a kilobyte that unpacks to 100 MB"),
    pytest.param(raw(b"{}", f"{STATE}.claim.%FF"), "UnknownSubject", id="a key that is not UTF-8"),
    pytest.param(raw(b"{}", f"{STATE}.slice.%ff"), "UnknownSubject", id="a key in lower case"),
    pytest.param(raw(b"{}", f"{STATE}.claim.{'%FF' * 300}"), "UnknownSubject", id="300 such bytes, which would grow"),
    pytest.param(raw(b"{}", f"{STATE}.claim.{LONG[:3_000]}"), "UnknownSubject", id="a key of 3 kB"),
    pytest.param(raw(b"{}", f"{STATE}.pod.p"), "UnknownSubject", id="a kind that nobody knows"),
    pytest.param(raw(b"{}", "dra.v1.state.south.claim.c"), "UnknownCluster", id="a cluster that nobody knows"),
    pytest.param(raw(b'{"type":"a.b.c","agent_epoch":1}'), "UnknownType", id="a type that nobody knows"),
    pytest.param(lambda epoch: (EVIL, encode(ClaimState(agent_epoch=10**9)), {}), "ImpossibleEpoch", id="a late epoch"),
    pytest.param(a_state(evil_claim(name=LONG)), "Unreadable", id="a name of 3 MB"),
    pytest.param(packed(msgspec.json.encode(evil_claim(name=LONG))), "Malformed", id="the same, compressed"),
    pytest.param(a_state(evil_claim(namespace=LONG)), "Unreadable", id="a namespace of 3 MB"),
    pytest.param(a_state(evil_claim(uid=LONG)), "Unreadable", id="a UID of 3 MB"),
    pytest.param(a_state(resource_version=LONG), "Unreadable", id="a resourceVersion of 3 MB"),
    pytest.param(a_state(consumers=pods(1, LONG)), "Unreadable", id="a pod's name of 3 MB"),
    pytest.param(a_state(consumers=pods(256, "\x01" * 250)), "Unreadable", id="256 names that grow when written down"),
    pytest.param(a_state(error=LONG), "Unreadable", id="an error of 3 MB"),
    pytest.param(a_state(consumers=pods(10_000)), "Unreadable", id="10,000 consumers"),
    pytest.param(a_state(with_results(50_000)), "Unreadable", id="50,000 results"),
    pytest.param(a_state(with_results(1, device=LONG)), "Unreadable", id="a device's name of 3 MB"),
    pytest.param(a_state(with_results(1, pool=LONG)), "Unreadable", id="a pool's name of 3 MB"),
    pytest.param(a_state(with_results(1, shareID=LONG)), "Unreadable", id="a share's name of 3 MB"),
    pytest.param(a_state(b"{}"), "Unreadable", id="a claim without anything"),
    pytest.param(a_state(a_class()), "Unreadable", id="a class on a claim's subject"),
    pytest.param(an_object("slice", a_slice("evil", LONG, ["e"])), "Unreadable", id="a slice of a pool of 3 MB"),
    pytest.param(an_object("slice", a_slice("evil", POOL, ["e" * 3_000_000])), "Unreadable", id="a device of 3 MB"),
    pytest.param(an_object("slice", a_slice("evil", POOL, ["e"])), "NotTheSource", id="a slice for another's pool"),
    pytest.param(an_object("class", a_slice("evil", POOL, ["e"])), "Unreadable", id="a slice on a class's subject"),
]

NAMED = [
    pytest.param(a_state(with_request(deviceClassName=LONG)), "InvalidClaim", id="a class's name of 3 MB"),
    pytest.param(
        a_state(with_request(selectors=[{"cel": {"expression": "true || " + LONG}}])),
        "InvalidClaim",
        id="a selector of 3 MB",
    ),
    pytest.param(a_state(with_request(count=10**12)), "TooManyDevices", id="10**12 devices"),
    pytest.param(a_state(consumers=pods(300)), "TooManyConsumers", id="300 consumers"),
]

HARMLESS = [
    pytest.param(a_state(decision=settled(1, "Failed", "y" * 30_000)), id="the outcome of what was never decided"),
    pytest.param(a_state(rejected=Rejected(5, LONG, LONG)), id="a rejection of what was never given"),
    pytest.param(
        lambda epoch: (f"{STATE}.agent.sync-1", encode(SyncPart(epoch, 9, 1, [ObjectName("claim", LONG)])), {}),
        id="a part of a sync that names 3 MB",
    ),
    pytest.param(
        lambda epoch: (f"{STATE}.agent.run", encode(SyncFinished(epoch, 9, 10**9, [])), {}),
        id="a sync of 10**9 parts",
    ),
]


def a_full_stage() -> Stage:
    """u of east has d0; w of west waits for d1, which is held by v of west."""
    stage = Stage(devices=["d0", "d1"])
    stage.claim("east", "u")
    stage.rest()
    stage.claim("west", "v")
    stage.rest()
    stage.claim("west", "w")
    stage.rest()
    return stage


def is_published(stage: Stage, make: Make) -> None:
    """East says it, and the broker acts on it."""
    stage.publish(*make(stage.agent_of("east").mirror.epoch))
    stage.decide()


def goes_on(stage: Stage) -> None:
    """Nobody else has noticed anything, also not after the broker starts again."""
    assert stage.allocated() == {"east/u": ["d0"], "west/v": ["d1"]}
    for letter in stage.dead_letters:
        assert len(encode(letter)) < LETTER_BYTES_MAX
    stage.start_broker()
    stage.decide()
    stage.delete("west", "v")
    for cluster in ("west", "hub", "west"):
        agent = stage.agent_of(cluster)
        stage.serve(agent)
        stage.decide()
        while stage.consumers[cluster].has_new():
            agent.take_decision()
        stage.tell(cluster)
    assert stage.allocated() == {"east/u": ["d0"], "west/w": ["d1"]}


@pytest.mark.parametrize(("make", "reason"), KEPT_ASIDE)
def test_what_cannot_be_taken_in_is_kept_aside_with_its_reason(make: Make, reason: str) -> None:
    stage = a_full_stage()
    is_published(stage, make)
    assert [letter.reason for letter in stage.dead_letters] == [reason]
    assert stage.dead_letters[0].message
    assert stage.dead_letters[0].stream_sequence == stage.log.last_sequence
    goes_on(stage)


@pytest.mark.parametrize(("make", "reason"), NAMED)
def test_what_cannot_be_allocated_says_why(make: Make, reason: str) -> None:
    stage = a_full_stage()
    is_published(stage, make)
    assert stage.reason("east", "evil") == reason
    goes_on(stage)


@pytest.mark.parametrize("make", HARMLESS)
def test_what_means_nothing_changes_nothing(make: Make) -> None:
    stage = a_full_stage()
    is_published(stage, make)
    goes_on(stage)


def test_a_claim_whose_message_was_garbage_is_well_again_when_its_agent_speaks() -> None:
    stage = a_full_stage()
    u = next(iter(stage.clusters["east"].keys))
    stage.publish(f"{STATE}.claim.{u}", GARBAGE)
    stage.decide()
    assert stage.believed("east", u).spec is None
    assert len(stage.believed("east", u).grants) == 1  # what cannot be read frees nothing
    stage.rest()  # the heartbeat tells that the agent has published something else
    assert stage.believed("east", u).spec is not None
    assert stage.allocated()["east/u"] == ["d0"]


def test_a_flood_of_new_subjects_from_one_agent_is_kept_aside_and_others_go_on() -> None:
    """A credential cannot keep an agent from making up names; only the limit of all streams bounds how many."""
    stage = a_full_stage()
    epoch = stage.agent_of("east").mirror.epoch
    for number in range(400):
        subject = f"{STATE}.claim.made-up-{number}"
        stage.publish(subject, encode(ClaimState(agent_epoch=epoch, claim=msgspec.Raw(b"{}"), resource_version="7")))
    stage.decide()
    assert [letter.reason for letter in stage.dead_letters] == ["Unreadable"] * 400
    goes_on(stage)


def test_the_largest_allocation_that_can_be_fits_into_the_ledger() -> None:
    stage = Stage(devices=[f"d{index}" for index in range(32)])
    stage.entry_bytes_max = 900 * 1024  # the server takes 1 MiB
    stage.rest()
    parameters = {"text": "x" * (10 * 1024 - 20)}
    config = [{"opaque": {"driver": DRIVER, "parameters": parameters}} for _ in range(32)]
    device_class = a_class()
    device_class["spec"]["config"] = config
    stage.clusters["hub"].change("class", device_class)
    claim = evil_claim(name="n" * 253, namespace="s" * 63)
    claim["spec"]["devices"]["requests"][0]["exactly"]["count"] = 32
    claim["spec"]["devices"]["config"] = config
    stage.tell("hub")
    is_published(stage, a_state(claim, consumers=pods(256, "p" * 250)))
    (decision,) = stage.entries(Allocate)
    assert len(encode(decision)) > 700 * 1024
