"""`dragoman ledger` on a real nats-server: what is read, what is written to files, and what is refused."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import zstandard
from anyio import to_thread

from broker.adapters.ledger_archive import Archive
from broker.adapters.ledger_store import Committed, LedgerStore, as_batches
from broker.adapters.streams import StreamSettings, ensure_streams, ledger_segments
from broker.allocation.cel.engine import default_engine
from broker.app.envelopes import Envelopes
from broker.cli.main import main
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import SegmentClosed
from schemas.wire.state import ClaimState, Settled
from schemas.wire.subjects import ledger_stream
from tests.machine.driven import ONE_FABRIC, Driven
from tests.machine.test_segments import a_ledger
from tests.nats_fixture import connect_to, nats_server, nats_url

__all__ = ["nats_server", "nats_url"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def connection(nats_url: str) -> AsyncIterator[Connection]:
    """A nats-server with a ledger of three segments: two are closed."""
    async with connect_to(nats_url) as connection:
        before = None
        for segment, messages in a_ledger(Driven(ONE_FABRIC, default_engine()), 3).items():
            first = messages[0].stream_sequence
            await ensure_streams(connection, StreamSettings(), "main", segment, first if segment else 0)
            store = LedgerStore(connection, ledger_stream("main", segment))
            entries = [decode_entry(message.payload) for message in messages]
            last = first - 1
            for batch in as_batches(Envelopes("main", segment, "test").batch(entries, first, 0, before)):
                assert await store.append(batch, last) == Committed(last + len(batch))
                last, before = last + len(batch), batch[-1]
        yield connection


async def run(nats_url: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = await to_thread.run_sync(lambda: main(["ledger", *arguments, "--nats", nats_url]))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def files_in(directory: Path) -> list[str]:
    return sorted(map(str, directory.iterdir()))


async def test_verifies_what_is_in_nats(
    connection: Connection, nats_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = await run(nats_url, capsys, "verify")
    assert code == 0
    assert "in 3 segments: nothing is wrong" in out
    code, out, _ = await run(nats_url, capsys, "verify", "-o", "json")
    found = json.loads(out)
    assert (code, found["ok"], found["notes"]) == (0, True, [])
    assert [(each["segment"], each["closed"], each["compared"]) for each in found["segments"]] == [
        (0, True, False),
        (1, True, True),
        (2, False, True),
    ]


async def test_names_the_bad_entry(connection: Connection, nats_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    subject = "dra.v1.ledger.main.2.east.record.u"
    stored = msgspec.json.decode((await connection.request(subject, b"garbage", deadline_s=5)).payload)
    code, out, _ = await run(nats_url, capsys, "verify")
    assert code == 1
    assert (
        f"segment 2, sequence {stored['seq']}, {subject}: it has no Dra-Chain, and the entry before it has one" in out
    )


async def test_says_that_a_rebuild_was_not_finished(
    connection: Connection, nats_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LedgerStore(connection, ledger_stream("main", 2))
    last = await StreamReader(connection, ledger_stream("main", 2)).last()
    assert last is not None
    closed = SegmentClosed(next_segment=3, is_abandoned=True)
    messages = Envelopes("main", 2, "test").batch([closed], last.stream_sequence + 1, 0, last)
    assert await store.append(messages, last.stream_sequence) == Committed(last.stream_sequence + 1)
    said = "segment 2 was closed by a rebuild, and none was opened after it: nothing is granted"
    code, out, _ = await run(nats_url, capsys, "verify")
    assert code == 1
    assert said in " ".join(out.split())
    assert "nothing is wrong" not in out
    code, out, _ = await run(nats_url, capsys, "verify", "-o", "json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    assert said in json.loads(out)["stuck"]


@pytest.mark.parametrize("above", ["-5", "x", "9007199254740993", "9223372036854775808", "9" * 5_000])
def test_a_rebuild_begins_at_no_sequence_that_no_ledger_reaches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], above: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("clusters: [east]\n")
    with pytest.raises(SystemExit) as ended:
        main(["ledger", "rebuild", "--config", str(config), "--reason", "x", "--yes", f"--above={above}"])
    assert ended.value.code == 2
    assert "is no ledger sequence" in capsys.readouterr().err


async def test_a_sequence_that_a_cluster_has_made_up_is_not_believed_by_a_rebuild(
    connection: Connection, nats_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("clusters: [east]\n")
    decision = Settled(2**63, "Applied")
    state = ClaimState(agent_epoch=1, claim=msgspec.Raw(b'{"metadata":{"uid":"u"}}'), decision=decision)
    await connection.request("dra.v1.state.east.claim.u", encode(state), deadline_s=5)
    segments = await ledger_segments(connection, "main")
    code, _, err = await run(nats_url, capsys, "rebuild", "--config", str(config), "--reason", "x", "--yes")
    assert code == 1
    assert f"the ledger sequence {2**63} was seen, which no ledger reaches" in err
    assert await ledger_segments(connection, "main") == segments
    assert (await run(nats_url, capsys, "verify"))[0] == 0, "nothing was closed"


async def test_says_that_there_is_no_ledger(nats_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = await run(nats_url, capsys, "verify")
    assert code == 1
    assert "there is no ledger here" in err


async def test_archives_what_is_closed_and_reads_it_back(
    connection: Connection, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = await run(nats_url, capsys, "archive", "--all-closed", str(tmp_path), "-o", "json")
    done = json.loads(out)
    assert code == 0
    assert [(each["segment"], each["action"], each["stream"]) for each in done] == [
        (0, "written", "kept"),
        (1, "written", "kept"),
    ]
    files = [each["file"] for each in done]
    assert sorted(files) == files_in(tmp_path)
    # Byte for byte what is in NATS.
    archived = [message for batch in Archive(Path(files[0])).batches() for message in batch]
    kept = [
        message async for batch in LedgerStore(connection, ledger_stream("main", 0)).read_all() for message in batch
    ]
    assert [(each.stream_sequence, each.subject, each.payload) for each in archived] == [
        (each.stream_sequence, each.subject, each.payload) for each in kept
    ]
    assert [each.headers["ce-id"] for each in archived] == [each.headers["ce-id"] for each in kept]
    code, out, _ = await run(nats_url, capsys, "verify", *files)
    assert code == 0
    assert "in 2 segments: nothing is wrong" in out
    code, out, _ = await run(nats_url, capsys, "archive", "--all-closed", str(tmp_path), "-o", "json")
    assert [each["action"] for each in json.loads(out)] == ["found", "found"]


async def test_deletes_only_what_was_exported_and_no_start_needs(
    connection: Connection, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = await run(
        nats_url, capsys, "archive", "--all-closed", str(tmp_path), "--seal", "--delete", "-o", "json"
    )
    assert code == 0
    assert [(each["segment"], each["stream"]) for each in json.loads(out)] == [(0, "deleted"), (1, "sealed")]
    assert await ledger_segments(connection, "main") == [1, 2]
    code, out, _ = await run(nats_url, capsys, "verify")
    assert code == 0
    assert "segments before 1 are not here" in out
    code, _, err = await run(nats_url, capsys, "archive", "--segment", "1", str(tmp_path), "--seal", "--delete")
    assert code == 1
    assert "a start falls back on it" in err
    code, out, _ = await run(nats_url, capsys, "verify", *files_in(tmp_path))
    assert code == 0


async def test_deletes_nothing_before_a_segment_that_does_not_go_on_from_it(
    connection: Connection, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = await LedgerStore(connection, ledger_stream("main", 1)).last_sequence()
    await connection.api(f"STREAM.DELETE.{ledger_stream('main', 1)}")
    await ensure_streams(connection, StreamSettings(), "main", 1, last)
    code, _, err = await run(nats_url, capsys, "archive", "--all-closed", str(tmp_path), "--seal", "--delete")
    assert code == 1
    assert "segment 0 stays as it is: the segment after it is not open yet" in err
    assert await ledger_segments(connection, "main") == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["--segment", "2", "{dir}"], 1, "2: it is not closed (closed: 0, 1)", id="an open segment"),
        pytest.param(["--segment", "7", "{dir}"], 1, "there is no such segment", id="none"),
        pytest.param(["--all-closed", "{dir}/file"], 2, "is no directory", id="all into one file"),
        pytest.param(["--all-closed", "{dir}", "--delete"], 2, "--delete goes with --seal", id="deleted unsealed"),
        pytest.param(["--segment", "1", "{dir}/a/b"], 1, "cannot be written: ", id="where no directory is"),
    ],
)
async def test_refuses_to_archive(
    connection: Connection,
    nats_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    code: int,
    says: str,
) -> None:
    found = await run(nats_url, capsys, "archive", *(each.format(dir=tmp_path) for each in arguments))
    assert found[0] == code
    assert says in found[2]
    assert files_in(tmp_path) == []


async def test_another_file_of_that_name_is_not_written_over(
    connection: Connection, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(nats_url, capsys, "archive", "--segment", "0", str(tmp_path / "file"))
    code, _, err = await run(nats_url, capsys, "archive", "--segment", "1", str(tmp_path / "file"))
    assert code == 1
    assert "it is there already, and is not segment 1" in err


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
async def test_a_damaged_file_is_not_believed(
    connection: Connection, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    path = tmp_path / "file"
    await run(nats_url, capsys, "archive", "--segment", "0", str(path))
    whole = path.read_bytes()
    cut = int(len(whole) * share)
    path.write_bytes(whole[:cut])
    code, _, err = await run(nats_url, capsys, "verify", str(path))
    assert (code, str(path) in err) == (1, True)
    flipped = bytes([whole[cut] ^ 1])
    path.write_bytes(whole[:cut] + flipped + whole[cut + 1 :])
    code, _, err = await run(nats_url, capsys, "verify", str(path))
    assert (code, str(path) in err) == (1, True)
    path.unlink()
    code, _, err = await run(nats_url, capsys, "verify", str(path))
    assert (code, "No such file" in err) == (1, True)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param(0, "it does not begin as an archive of a ledger segment", id="in its first line"),
        pytest.param(2, "the line after 1 entries is damaged", id="in an entry"),
        pytest.param(-1, "is damaged", id="in its last line"),
    ],
)
async def test_a_file_with_what_is_no_text_is_not_believed(
    connection: Connection, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: int, says: str
) -> None:
    path = tmp_path / "file"
    await run(nats_url, capsys, "archive", "--segment", "0", str(path))
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
        lines = unpacked.read().splitlines(keepends=True)
    text = {0: b'"stream":"', 2: b'"subject":"', -1: b'"sha256":"'}[line]
    assert text in lines[line]
    lines[line] = lines[line].replace(text, text + b"\xff")
    path.write_bytes(zstandard.ZstdCompressor().compress(b"".join(lines)))
    code, _, err = await run(nats_url, capsys, "verify", str(path))
    assert (code, str(path) in err, says in err) == (1, True, True)
