"""`dragoman audit` on what real brokers have decided, kept by a real nats-server."""

import csv
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from shutil import copytree

import msgspec
import pyarrow.parquet as parquet
import pytest
from anyio import to_thread

from broker.adapters.anchor_keys import read_anchor, sign
from broker.adapters.embedded_nats import embedded_nats
from broker.adapters.ledger_archive import Archive, ArchiveHeader, ArchiveWriter
from broker.adapters.streams import PER_SUBJECT, StreamSettings, ensure_streams
from broker.app.envelopes import Envelopes
from broker.cli.demo import write_manifests
from broker.cli.ledger_bus import entries_of
from broker.cli.main import main
from broker.machine.effects import ALGORITHM
from schemas.client.connection import Connection
from schemas.wire.anchor import Anchor
from schemas.wire.bus import StoredMessage
from schemas.wire.chain import CHAIN, ERASED, chain_of, link
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    Inputs,
    LeaderElected,
    ReasonChanged,
    Release,
    SegmentClosed,
    inputs_of,
)
from schemas.wire.subjects import STATE_STREAM, ledger_stream
from tests.nats_fixture import connect_to

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

CLUSTERS = ("--cluster", "east", "--cluster", "west")
STREAM = ledger_stream("main", 0)
Run = Callable[..., "Ran"]


class Ran:
    """What a command printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in which three brokers, one after the other, have decided the demo's claims."""
    root = tmp_path_factory.mktemp("audit")
    write_manifests(root)
    for name in ("", "train-east.yaml", "train-west.yaml"):
        if name:
            next(root.glob(f"*/{name}")).unlink()
        up = ["up", "--data", str(root / "data"), "--once", "-o", "json"]
        main([*up, *(word for each in ("east", "west") for word in ("--cluster", f"{each}={root / each}"))])
    return root / "data" / "nats"


@pytest.fixture
async def connection(decided: Path, tmp_path: Path) -> AsyncIterator[Connection]:
    """At a nats-server that has a copy of it."""
    copy = tmp_path / "nats"
    await to_thread.run_sync(lambda: copytree(decided, copy))
    async with embedded_nats(copy) as server, connect_to(server) as connection:
        yield connection


async def run(connection: Connection, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    capsys.readouterr()
    nats = [] if arguments[0] == "key" else ["--nats", connection.places.split(",")[0].strip()]
    code = await to_thread.run_sync(lambda: main(["audit", *arguments, *nats]))
    printed = capsys.readouterr()
    return Ran(code, printed.out, printed.err)


async def everything(connection: Connection, stream: str = STREAM) -> list[StoredMessage]:
    return [message async for batch in entries_of(connection, stream) for message in batch]


def first_of(messages: list[StoredMessage], kind: type[AnyEntry], number: int = 0) -> StoredMessage:
    return [each for each in messages if isinstance(decode_entry(each.payload), kind)][number]


async def write_anew(connection: Connection, messages: list[StoredMessage], stream: str = STREAM) -> None:
    """As somebody with the server's disks can."""
    await connection.api(f"STREAM.DELETE.{stream}")
    await ensure_streams(connection, StreamSettings(), state_first_sequence=0)
    for message in messages:
        of_nats = [name for name in message.headers if name.startswith("Nats-") and name != "Nats-Msg-Id"]
        headers = {name: value for name, value in message.headers.items() if name not in of_nats}
        await connection.request(message.subject, message.payload, headers, deadline_s=5)


def one_byte(message: StoredMessage) -> StoredMessage:
    """Another device of the same length."""
    changed = message.payload.replace(b'"device":"gpu-', b'"device":"gpv-', 1)
    assert changed != message.payload
    return msgspec.structs.replace(message, payload=changed)


async def test_every_decision_of_every_broker_is_made_again(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = await run(connection, capsys, "verify", *CLUSTERS, "--replay", "-o", "json")
    found = json.loads(ran.out)
    messages = await everything(connection)
    assert (ran.code, found["ok"], found["bad"]) == (0, True, None)
    assert found["replay"]["terms"] == 3
    assert found["replay"]["left_out"] == []
    assert found["replay"]["decisions"] >= 8
    assert found["chain"]["entries"] == len(messages) == found["segments"][0]["entries"]
    assert found["chain"]["unchained"] == []
    assert found["chain"]["head"]["chain"] == chain_of(messages[-1])
    ran = await run(connection, capsys, "verify", *CLUSTERS)
    assert ran.code == 0
    assert "leaders were made again: the same bytes" in " ".join(ran.out.split())
    assert "nothing is wrong" in ran.out


async def test_names_the_entry_of_which_one_byte_was_changed(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = await everything(connection)
    bad = first_of(messages, Allocate, 1)
    await write_anew(connection, [one_byte(each) if each is bad else each for each in messages])
    ran = await run(connection, capsys, "verify", *CLUSTERS, "-o", "json")
    found = json.loads(ran.out)
    assert ran.code == 1
    assert (found["bad"]["sequence"], found["bad"]["subject"]) == (bad.stream_sequence, bad.subject)
    ran = await run(connection, capsys, "verify", "--no-replay")
    assert ran.code == 1
    assert f"bad: segment 0, sequence {bad.stream_sequence}, {bad.subject}: Dra-Chain is" in " ".join(ran.out.split())


def with_another_chain(messages: list[StoredMessage], changed: StoredMessage) -> list[StoredMessage]:
    """The whole ledger written anew, so that nothing of it contradicts itself."""
    before, found = "", []
    for message in messages:
        each = changed if message.stream_sequence == changed.stream_sequence else message
        before = link(before, each)
        found.append(msgspec.structs.replace(each, headers={**each.headers, CHAIN: before}))
    return found


async def test_a_ledger_that_was_written_anew_is_told_by_a_replay(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its chain is whole. But another claim's name is not what was decided."""
    messages = await everything(connection)
    bad = first_of(messages, Allocate, 1)
    changed = msgspec.structs.replace(bad, payload=bad.payload.replace(b'"namespace":"', b'"namespace":"x', 1))
    await write_anew(connection, with_another_chain(messages, changed))
    assert (await run(connection, capsys, "verify", "--no-replay")).code == 0
    ran = await run(connection, capsys, "verify", *CLUSTERS, "-o", "json")
    found = json.loads(ran.out)
    assert ran.code == 1
    assert found["bad"]["sequence"] == bad.stream_sequence
    assert "made again it comes out otherwise" in found["bad"]["problem"]


def a_forged_grant(messages: list[StoredMessage]) -> Allocate:
    """A device that nobody has, for a claim that nobody knows: no leader has decided that."""
    entry = decode_entry(first_of(messages, Allocate).payload)
    assert isinstance(entry, Allocate)
    holds = [msgspec.structs.replace(hold, device="gpu-none") for hold in entry.holds]
    return msgspec.structs.replace(entry, uid="somebody-else", name="forged", holds=holds, inputs=None)


async def append(connection: Connection, *entries: AnyEntry) -> None:
    """As somebody may who can write to the ledger, with a chain that is whole."""
    last = (await everything(connection))[-1]
    for each in Envelopes("main", 0, "forged").batch(entries, last.stream_sequence + 1, 0, last):
        await connection.request(each.subject, each.payload, each.headers, deadline_s=5)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="at the end of the ledger"),
        pytest.param([LeaderElected(instance="forged", build="")], id="before an election"),
    ],
)
async def test_a_decision_that_no_leader_has_made_is_found(
    connection: Connection, capsys: pytest.CaptureFixture[str], more: list[AnyEntry]
) -> None:
    """Its chain is whole, and nothing contradicts it. But nobody says what it was decided from."""
    messages = await everything(connection)
    forged, at = a_forged_grant(messages), messages[-1].stream_sequence + 1
    await append(connection, forged, *more)
    for arguments in (("--no-replay",), CLUSTERS, (*CLUSTERS, "--replay")):
        ran = await run(connection, capsys, "verify", *arguments, "-o", "json")
        found = json.loads(ran.out)
        assert (ran.code, found["ok"], found["bad"]["sequence"]) == (1, False, at)
        assert "its batch has no end that says what it was decided from" in found["bad"]["problem"]
    assert found["replay"]["left_out"][-1]["why"] == "the ledger does not say what it was decided from"
    rows = [json.loads(line) for line in (await run(connection, capsys, "export")).out.splitlines()]
    assert [(row["ledger_sequence"], row["name"], row["build"], row["leader"]) for row in rows[-1:]] == [
        (at, "forged", "", "")
    ]
    url = connection.places.split(",")[0].strip()
    command = ["explain", f"{forged.namespace}/forged", "--at", "0s", "--nats", url]
    assert await to_thread.run_sync(lambda: main(command)) == 1
    assert f"ledger entry {at} is not as it must be" in capsys.readouterr().err


async def test_a_batch_that_is_on_its_way_is_read_to_its_end(connection: Connection) -> None:
    """Nobody has promised that a reader sees a batch as a whole or not at all."""
    forged = a_forged_grant(await everything(connection))
    await append(connection, forged)
    found: list[StoredMessage] = []
    async with aclosing(entries_of(connection, STREAM)) as batches:
        async for batch in batches:
            found += batch
            if isinstance(decode_entry(batch[-1].payload), Allocate):
                await append(connection, forged, Inputs(leader_epoch=2))
    assert [type(decode_entry(each.payload)) for each in found[-3:]] == [Allocate, Allocate, Inputs]


async def test_an_anchor_tells_of_a_ledger_that_was_written_anew(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(tmp_path / "anchor.json")
    key = str(tmp_path / "anchor.nk")
    public = (await run(connection, capsys, "key", key)).out.strip()
    assert (tmp_path / "anchor.nk").stat().st_mode & 0o777 == 0o600
    ran = await run(connection, capsys, "anchor", "--key", key, "--file", file)
    assert (ran.code, ran.out) == (0, "")
    ran = await run(connection, capsys, "verify", "--no-replay", "--anchor", file, "--trust", public)
    messages = await everything(connection)
    assert ran.code == 0
    assert f"the ledger goes through {messages[-1].stream_sequence}, as {public} signed" in " ".join(ran.out.split())
    changed = first_of(messages, Allocate, 1)
    changed = msgspec.structs.replace(changed, headers={**changed.headers, "ce-time": "2026-01-01T00:00:00.000Z"})
    await write_anew(connection, with_another_chain(messages, changed))
    ran = await run(connection, capsys, "verify", "--no-replay", "--anchor", file)
    assert ran.code == 1
    assert "the ledger was written anew before it" in " ".join(ran.out.split())
    await write_anew(connection, messages[:-2])
    ran = await run(connection, capsys, "verify", "--no-replay", "--anchor", file)
    assert ran.code == 1
    assert f"what was read, and is as it must be, is 1 to {messages[-3].stream_sequence}" in " ".join(ran.out.split())


async def anchored(connection: Connection, capsys: pytest.CaptureFixture[str], directory: Path) -> tuple[Path, Anchor]:
    """A key, and what it has signed of the ledger as it is; the file beside the key is "anchor"."""
    key = directory / "anchor.nk"
    await run(connection, capsys, "key", str(key))
    ran = await run(connection, capsys, "anchor", "--key", str(key), "--file", str(directory / "anchor"))
    assert ran.code == 0
    return key, read_anchor(directory / "anchor")


async def test_a_header_after_a_rebuild_is_no_proof(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What an anchor says is public, and what follows an abandoned end is not looked at."""
    _, anchor = await anchored(connection, capsys, tmp_path)
    messages = await everything(connection)
    await write_anew(connection, messages[:-2])
    await append(connection, SegmentClosed(next_segment=1, is_abandoned=True))
    junk = msgspec.structs.replace(messages[-1], headers={**messages[-1].headers, CHAIN: anchor.chain})
    await connection.request(junk.subject, b"junk", dict(junk.headers), deadline_s=5)
    assert (await everything(connection))[-1].stream_sequence == anchor.ledger_sequence
    ran = await run(connection, capsys, "verify", "--no-replay", "--anchor", str(tmp_path / "anchor"), "-o", "json")
    found = json.loads(ran.out)
    assert (ran.code, found["anchors"], found["bad"]["sequence"]) == (1, [], anchor.ledger_sequence)
    assert f"is 1 to {anchor.ledger_sequence - 1}" in found["bad"]["problem"]
    assert (await run(connection, capsys, "verify", "--no-replay")).code == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        pytest.param({"chain": "ab" * 32}, "the ledger was written anew before it", id="another chain"),
        pytest.param({"segment": 1}, "in segment 1 of main was anchored", id="another segment"),
        pytest.param({"shard": "other"}, "in segment 0 of other was anchored", id="another ledger"),
        pytest.param({"ledger_sequence": 1_000_000}, "an entry was anchored there", id="another entry"),
    ],
)
async def test_the_ledger_must_go_through_every_anchor(
    connection: Connection,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    changed: dict[str, str | int],
    says: str,
) -> None:
    key, anchor = await anchored(connection, capsys, tmp_path)
    right, wrong = tmp_path / "anchor", tmp_path / "wrong"
    wrong.write_bytes(msgspec.json.encode(sign(msgspec.structs.replace(anchor, **changed), key)))
    for files in ((right, wrong), (wrong, right)):
        words = [word for each in files for word in ("--anchor", str(each))]
        ran = await run(connection, capsys, "verify", "--no-replay", *words, "-o", "json")
        found = json.loads(ran.out)
        assert (ran.code, says in found["bad"]["problem"], len(found["anchors"])) == (1, True, 1)
    ran = await run(connection, capsys, "verify", "--no-replay", "--anchor", str(right), "--anchor", str(right))
    assert ran.code == 0


async def test_an_anchor_that_was_changed_or_signed_by_somebody_else(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key, other, file = (str(tmp_path / name) for name in ("a.nk", "b.nk", "anchor.json"))
    public = (await run(connection, capsys, "key", key)).out.strip()
    somebody = (await run(connection, capsys, "key", other)).out.strip()
    assert (await run(connection, capsys, "key", key)).code == 1
    assert (await run(connection, capsys, "anchor", "--key", key, "--file", file)).code == 0
    assert (await run(connection, capsys, "anchor", "--key", key, "--file", file)).code == 2
    assert (await run(connection, capsys, "anchor", "--check", file, "--trust", public)).code == 0
    ran = await run(connection, capsys, "verify", "--no-replay", "--anchor", file, "--trust", somebody)
    assert (ran.code, f"is signed by {public}, not by {somebody}" in ran.err) == (1, True)
    changed = tmp_path / "changed.json"
    for before, after in (('"segment": 0', '"segment": 1'), (public, somebody), (public, "UAAA")):
        changed.write_text((tmp_path / "anchor.json").read_text().replace(before, after))
        ran = await run(connection, capsys, "anchor", "--check", str(changed))
        assert ran.code == 1
        assert "its signature is wrong" in ran.err or "is no public NKey" in ran.err
    changed.write_text("{}")
    assert "is no anchor" in (await run(connection, capsys, "anchor", "--check", str(changed))).err


async def test_a_trusted_key_without_an_anchor_is_no_check(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key, file = str(tmp_path / "a.nk"), str(tmp_path / "anchor.json")
    public = (await run(connection, capsys, "key", key)).out.strip()
    ran = await run(connection, capsys, "verify", "--no-replay", "--trust", public)
    assert (ran.code, "--trust goes with --anchor" in ran.err) == (2, True)
    ran = await run(connection, capsys, "anchor", "--key", key, "--file", file, "--trust", public)
    assert (ran.code, "--trust goes with --check" in ran.err) == (2, True)
    await run(connection, capsys, "anchor", "--key", key, "--file", file)
    for wrong in ("ada", f"A{public[1:]}", f"{public[:-1]}{'A' if public[-1] == 'B' else 'B'}", public.lower()):
        for what in (("verify", "--no-replay", "--anchor", file), ("anchor", "--check", file)):
            ran = await run(connection, capsys, *what, "--trust", wrong)
            assert (ran.code, "is no public NKey of a user" in ran.err) == (2, True)


async def test_what_was_seen_must_be_what_is_there(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """A message of DRA_STATE is another one than the decision was made on."""
    state = await everything(connection, STATE_STREAM)
    claims = [each for each in state if ".state.west.node." in each.subject or ".state.west.claim." in each.subject]
    bad = claims[0]
    changed = msgspec.structs.replace(
        bad, payload=bad.payload.replace(b'"resource_version":"', b'"resource_version":"9')
    )
    assert changed.payload != bad.payload
    await write_anew(connection, [changed if each is bad else each for each in state], STATE_STREAM)
    found = json.loads((await run(connection, capsys, "verify", *CLUSTERS, "-o", "json")).out)
    assert found["ok"] is False
    assert "the messages of DRA_STATE are not those that it was decided on" in found["bad"]["problem"]


async def test_inputs_that_have_expired_are_said(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    last = (await everything(connection, STATE_STREAM))[-1].stream_sequence
    elected = first_of(await everything(connection), LeaderElected, 1).stream_sequence
    await connection.api(f"STREAM.PURGE.{STATE_STREAM}", {"seq": 3})
    ran = await run(connection, capsys, "verify", *CLUSTERS, "-o", "json")
    found = json.loads(ran.out)
    assert (ran.code, found["ok"], found["replay"]["terms"]) == (0, True, 0)
    whys = [each["why"] for each in found["replay"]["left_out"]]
    assert whys == ["inputs expired before message 3 of DRA_STATE"]
    assert found["replay"]["left_out"][0]["first"] < elected
    assert (await run(connection, capsys, "verify", *CLUSTERS, "--replay")).code == 1
    await connection.api(f"STREAM.PURGE.{STATE_STREAM}", {"seq": last + 1})
    ran = await run(connection, capsys, "verify", *CLUSTERS)
    assert ran.code == 0
    assert f"inputs expired before message {last + 1}" in " ".join(ran.out.split())


async def test_an_object_that_has_changed_often_since_is_named(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """DRA_STATE keeps the last messages of each object: those that the first leaders had read of this one are gone."""
    claim = next(each for each in await everything(connection, STATE_STREAM) if ".state.west.claim." in each.subject)
    headers = {name: value for name, value in claim.headers.items() if not name.startswith("Nats-")}
    for _ in range(PER_SUBJECT):
        await connection.request(claim.subject, claim.payload, headers, deadline_s=5)
    ran = await run(connection, capsys, "verify", *CLUSTERS, "-o", "json")
    found = json.loads(ran.out)
    assert (ran.code, found["ok"], found["replay"]["terms"]) == (0, True, 1)
    whys = [each["why"] for each in found["replay"]["left_out"]]
    assert whys[0].startswith("inputs expired before message ")  # the first leader had read one of them
    assert f"inputs expired: of 1 objects messages are missing, such as {claim.subject}" in whys
    assert (await run(connection, capsys, "verify", *CLUSTERS, "--replay")).code == 1


async def test_other_settings_and_no_settings_are_said(
    connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ((), ("--cluster", "west", "--cluster", "east")):
        ran = await run(connection, capsys, "verify", *arguments)
        assert ran.code == 0
        assert "give that config file with --config" in " ".join(ran.out.split())
        assert (await run(connection, capsys, "verify", *arguments, "--replay")).code == 1


async def test_a_leader_whose_election_was_not_read(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    messages = await everything(connection)
    second = first_of(messages, LeaderElected, 1).stream_sequence
    ran = await run(connection, capsys, "verify", *CLUSTERS, "--until", str(second - 1), "-o", "json")
    found = json.loads(ran.out)
    assert (found["ok"], found["replay"]["terms"]) == (True, 1)
    assert found["segments"][0]["last"] == second - 1


async def test_archives_are_verified_too(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "segment.zst"
    messages = await everything(connection)
    with ArchiveWriter(file, ArchiveHeader(stream=STREAM, shard="main", segment=0)) as writer:
        writer.add(messages)
    ran = await run(connection, capsys, "verify", str(file))
    assert ran.code == 0
    assert "files have no inputs" in ran.out
    nobody = ["audit", "verify", str(file), "--no-replay", "--nats", "nats://127.0.0.1:1"]
    assert await to_thread.run_sync(lambda: main(nobody)) == 0
    assert "decisions were not made again (--no-replay)" in capsys.readouterr().out
    found = json.loads((await run(connection, capsys, "verify", str(file), *CLUSTERS, "--replay", "-o", "json")).out)
    assert (found["ok"], found["replay"]["terms"]) == (True, 3)
    bad = first_of(messages, Allocate)
    changed = tmp_path / "changed.zst"
    with ArchiveWriter(changed, ArchiveHeader(stream=STREAM, shard="main", segment=0)) as writer:
        writer.add(one_byte(each) if each is bad else each for each in messages)
    ran = await run(connection, capsys, "verify", str(changed), "-o", "json")
    assert (ran.code, json.loads(ran.out)["bad"]["sequence"]) == (1, bad.stream_sequence)
    assert [each.payload for batch in Archive(file).batches() for each in batch] == [each.payload for each in messages]


# --- export


async def test_one_row_for_each_decision(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    messages = await everything(connection)
    entries = {message.stream_sequence: decode_entry(message.payload) for message in messages}
    decided = [at for at, entry in entries.items() if isinstance(entry, Allocate | Release | ReasonChanged | Adopted)]
    ran = await run(connection, capsys, "export")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, [row["ledger_sequence"] for row in rows]) == (0, decided)
    row = next(row for row in rows if row["decision"] == "Allocate")
    entry, message = entries[row["ledger_sequence"]], messages[row["ledger_sequence"] - 1]
    assert isinstance(entry, Allocate)
    hold = entry.holds[0]
    assert (row["cluster"], row["uid"], row["namespace"], row["name"]) == (
        entry.cluster,
        entry.uid,
        entry.namespace,
        entry.name,
    )
    assert row["devices"][0] == f"{entry.scopes[0]}/{hold.driver}/{hold.pool}/{hold.device}"
    assert row["pods"] == [pod.name for pod in entry.reserved_for]
    assert (row["state_sequence"], row["resource_version"]) == (entry.state_sequence, entry.resource_version)
    elected = [each for each in entries.values() if isinstance(each, LeaderElected)]
    inputs = next(found for at, each in entries.items() if at >= row["ledger_sequence"] and (found := inputs_of(each)))
    assert (row["leader"], row["build"], row["algorithm"]) == (elected[0].instance, elected[0].build, ALGORITHM)
    assert (row["state_digest"], row["state_position"]) == (inputs.state_digest, inputs.steps[-1].position)
    assert (row["settings_digest"], row["chain"]) == (inputs.settings_digest, chain_of(message))
    assert row["trace_id"] == message.headers["traceparent"].split("-")[1]
    assert {row["decision"] for row in rows} >= {"Allocate", "Pending", "Refuse"}
    assert all(row["reason"] and row["message"] for row in rows if row["decision"] in ("Pending", "Refuse"))
    between = (str(decided[2]), str(decided[4]))
    ran = await run(connection, capsys, "export", "--since", between[0], "--until", between[1])
    assert [json.loads(line)["ledger_sequence"] for line in ran.out.splitlines()] == decided[2:5]
    for form in ("csv", "parquet"):
        file = tmp_path / f"rows.{form}"
        ran = await run(connection, capsys, "export", "--format", form, "--file", str(file))
        assert (ran.code, ran.out) == (0, f"{len(rows)} decisions written to {file}\n")
        assert (await run(connection, capsys, "export", "--format", form, "--file", str(file))).code == 1
    with (tmp_path / "rows.csv").open(newline="") as lines:
        cells = list(csv.DictReader(lines))
    assert [int(each["ledger_sequence"]) for each in cells] == decided
    assert [each["devices"].split() for each in cells] == [row["devices"] for row in rows]
    assert [json.loads(each["explanation"] or "{}") for each in cells] == [row["explanation"] for row in rows]
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [{**each, "explanation": json.loads(each["explanation"])} for each in table] == rows
    assert (await run(connection, capsys, "export", "--format", "parquet")).code == 2


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
async def test_an_export_that_fails_leaves_no_file(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str
) -> None:
    messages = await everything(connection)
    last = messages[-1].stream_sequence
    await connection.request("dra.v1.ledger.main.0.east.record.u", b"garbage", deadline_s=5)
    file = tmp_path / "files" / "rows"
    file.parent.mkdir()
    export = ("export", "--format", form, "--file", str(file))
    ran = await run(connection, capsys, *export)
    assert (ran.code, f"ledger entry {last + 1}" in ran.err, list(file.parent.iterdir())) == (1, True, [])
    await write_anew(connection, messages)
    assert (await run(connection, capsys, *export)).code == 0
    whole = file.read_bytes()
    ran = await run(connection, capsys, *export)
    assert (ran.code, "is there already" in ran.err, file.read_bytes()) == (1, True, whole)
    assert list(file.parent.iterdir()) == [file]


async def test_parquet_without_pyarrow_is_said(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = await run(connection, capsys, "export", "--format", "parquet", "--file", str(tmp_path / "rows"))
    assert (ran.code, "install dragoman[parquet]" in ran.err) == (1, True)
    assert not (tmp_path / "rows").exists()


# --- names


async def archived(connection: Connection, path: Path) -> list[StoredMessage]:
    messages = await everything(connection)
    with ArchiveWriter(path, ArchiveHeader(stream=STREAM, shard="main", segment=0)) as writer:
        writer.add(messages)
    return messages


async def test_names_are_erased_and_all_else_can_still_be_proved(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole, some, none = (tmp_path / name for name in ("whole.zst", "some.zst", "none.zst"))
    messages = await archived(connection, whole)
    key, anchor = str(tmp_path / "k"), str(tmp_path / "anchor.json")
    await run(connection, capsys, "key", key)
    await run(connection, capsys, "anchor", "--key", key, "--file", anchor)
    entry = decode_entry(first_of(messages, Allocate).payload)
    assert isinstance(entry, Allocate)
    assert await to_thread.run_sync(lambda: main(["audit", "erase", str(whole), str(some), "--naming", ""])) == 2
    assert not some.exists()
    code = await to_thread.run_sync(lambda: main(["audit", "erase", str(whole), str(some), "--naming", entry.name]))
    said = capsys.readouterr().out
    assert code == 0
    copies = [each for batch in Archive(some).batches() for each in batch]
    assert f"{sum(ERASED in each.headers for each in copies)} of {len(messages)} entries have no names" in said
    assert 0 < sum(ERASED in each.headers for each in copies) < len(messages)
    assert entry.name.encode() not in b"".join(each.payload for each in copies)
    assert await to_thread.run_sync(lambda: main(["audit", "erase", str(whole), str(none), "--all"])) == 0
    for path in (some, none):
        ran = await run(connection, capsys, "verify", str(path), "--anchor", anchor, "-o", "json")
        found = json.loads(ran.out)
        assert (ran.code, found["bad"], len(found["anchors"])) == (0, None, 1)
        assert any("the names were erased" in note for note in found["notes"])
        assert found["chain"]["entries"] == len(messages)
    ran = await run(connection, capsys, "verify", str(some), *CLUSTERS, "--replay", "-o", "json")
    whys = {each["why"] for each in json.loads(ran.out)["replay"]["left_out"]}
    assert (ran.code, whys) == (1, {"names were erased, without which it cannot be made again"})
    ran = await run(connection, capsys, "export", str(none))
    assert {(row["name"], row["erased"]) for row in map(json.loads, ran.out.splitlines())} == {("~", True)}


async def test_what_cannot_be_erased_is_said(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole, copy, other = tmp_path / "whole.zst", tmp_path / "copy.zst", tmp_path / "other.zst"
    plain = [
        msgspec.structs.replace(each, headers={k: v for k, v in each.headers.items() if not k.startswith("Dra-")})
        for each in await everything(connection)
    ]
    with ArchiveWriter(whole, ArchiveHeader(stream=STREAM, shard="main", segment=0)) as writer:
        writer.add(plain)
    allocate = first_of(plain, Allocate)
    entry = decode_entry(allocate.payload)
    assert isinstance(entry, Allocate)
    for arguments in (["--naming", entry.name, str(whole), str(copy)], ["--all", str(whole), str(other)]):
        command = ["audit", "erase", *arguments, "-o", "json"]
        code = await to_thread.run_sync(lambda command=command: main(command))  # type: ignore[misc]
        done = json.loads(capsys.readouterr().out)
        assert (code, done["erased"]) == (1, 0)
        assert allocate.stream_sequence in done["left"]


# --- explain --at


async def test_a_claim_as_the_ledger_told_it(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    messages = await everything(connection)
    url = connection.places.split(",")[0].strip()
    allocated = first_of(messages, Allocate)
    entry = decode_entry(allocated.payload)
    assert isinstance(entry, Allocate)
    name = f"{entry.namespace}/{entry.name}"

    async def explain(at: str, *more: str) -> Ran:
        capsys.readouterr()
        where = more or ("--nats", url)
        command = ["explain", name, "--cluster", entry.cluster, "--at", at, "-o", "json", *where]
        code = await to_thread.run_sync(lambda: main(command))
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    at = allocated.stream_sequence
    [told] = json.loads((await explain(str(at))).out)
    assert (told["at"], told["uid"], told["state"], told["unsettled"]) == (
        at,
        entry.uid,
        "Allocating",
        f"Allocate {at}",
    )
    assert told["devices"] == [
        f"{entry.scopes[0]}/{entry.holds[0].driver}/{entry.holds[0].pool}/{entry.holds[0].device}"
    ]
    assert told["entries"][-1]["ledger_sequence"] == at
    [before] = json.loads((await explain(str(at - 1))).out)
    assert (before["state"], before["reason"], before["devices"]) == ("Pending", "WaitingForCluster", [])
    [later] = json.loads((await explain("0s")).out)
    assert later["at"] == messages[-1].stream_sequence
    assert (later["state"], later["grants"]) == ("Allocated", [at])
    assert [each["entry"] for each in later["entries"]][-2:] == ["Allocate", "OutcomeRecorded"]
    file = tmp_path / "segment.zst"
    with ArchiveWriter(file, ArchiveHeader(stream=STREAM, shard="main", segment=0)) as writer:
        writer.add(messages)
    assert json.loads((await explain("0s", "--archive", str(file))).out) == [later]
    ran = await explain("0s", "--archive", str(tmp_path / "none.zst"))
    assert (ran.code, "none.zst" in ran.err, "Traceback" in ran.err) == (1, True, False)
    ran = await explain("2020-01-01T00:00Z")
    assert (ran.code, "nothing from before that" in ran.err) == (1, True)
    ran = await explain("99999")
    assert (ran.code, f"ends at {messages[-1].stream_sequence}" in ran.err) == (1, True)
    ran = await explain("1")
    assert (ran.code, "did not know a claim" in ran.err) == (1, True)


async def test_a_ledger_without_a_chain_has_no_anchor(
    connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = [
        msgspec.structs.replace(each, headers={k: v for k, v in each.headers.items() if not k.startswith("Dra-")})
        for each in await everything(connection)
    ]
    await write_anew(connection, plain)
    ran = await run(connection, capsys, "verify", *CLUSTERS, "--replay")
    assert ran.code == 0
    assert "chain: no entry is chained" in ran.out
    assert f"entries 1 to {plain[-1].stream_sequence} are not chained" in ran.out
    await run(connection, capsys, "key", str(tmp_path / "k"))
    ran = await run(connection, capsys, "anchor", "--key", str(tmp_path / "k"))
    assert (ran.code, "is not chained" in ran.err) == (1, True)
