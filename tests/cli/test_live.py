"""`dragoman up` while it runs: files change, people ask, and nonsense arrives on its bus."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from broker.adapters.embedded_nats import EmbeddedNats
from broker.cli.main import main
from schemas.client.follow import follow
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage
from schemas.wire.calls import DeadLetter
from schemas.wire.codec import decode_call
from tests.bus.builders import store
from tests.cli.live import Live, live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import connect_to, own_nats

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

INVENTORY = (class_manifest(), slice_manifest(["gpu-0", "gpu-1"], fabric="rack"))


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """East has the inventory of two devices; west has the class."""
    found = {name: tmp_path / name for name in ("east", "west")}
    write_manifests(found["east"] / "inventory.yaml", *INVENTORY)
    write_manifests(found["west"] / "inventory.yaml", class_manifest())
    return found


async def test_shows_what_follows_from_changed_files(directories: dict[str, Path]) -> None:
    east, west = directories["east"] / "claims.yaml", directories["west"] / "claims.yaml"
    async with live_up(directories) as live:
        write_manifests(east, claim_manifest("a"))
        first = await live.until_state("east/a", "Allocated")
        write_manifests(west, claim_manifest("b"), claim_manifest("c"))
        await live.until_state("west/b", "Allocated")
        assert (await live.until_state("west/c", "Pending"))["reason"] == "DevicesInUse"

        east.unlink()
        await live.until("east/a gone", lambda live: "east/a" not in live.rows)
        assert (await live.until_state("west/c", "Allocated"))["results"] == first["results"]

        write_manifests(east, claim_manifest("a"))  # the same name again is another claim
        again = await live.until_state("east/a", "Pending")
        assert again["uid"] != first["uid"]
        await live.until("east/a waits for a device", lambda live: live.rows["east/a"]["reason"] == "DevicesInUse")

        east.unlink()  # it holds nothing, so that nothing of it is in the ledger
        await live.until("east/a gone again", lambda live: "east/a" not in live.rows)
        assert live.err.startswith("NATS: nats://127.0.0.1:")
        assert live.err.count("\n") == 1


async def test_a_broken_edit_keeps_what_was_there(directories: dict[str, Path]) -> None:
    east = directories["east"] / "claims.yaml"
    async with live_up(directories) as live:
        write_manifests(east, claim_manifest("a"))
        await live.until_state("east/a", "Allocated")
        write_manifests(east, "kind: [")
        await live.until("the error", lambda live: "claims.yaml:" in live.err)
        write_manifests(directories["east"] / "more.yaml", claim_manifest("b"))
        await live.until_state("east/b", "Allocated")
        assert live.rows["east/a"]["state"] == "Allocated"
        write_manifests(east, claim_manifest("a"), claim_manifest("c"))
        await live.until_state("east/c", "Pending")
        assert len({row["uid"] for row in live.lines if row["name"] == "a"}) == 1


async def test_a_new_device_and_a_new_class_end_the_waiting(directories: dict[str, Path]) -> None:
    async with live_up(directories) as live:
        claims = [claim_manifest(name) for name in ("a", "b", "c")]
        write_manifests(directories["east"] / "claims.yaml", *claims, claim_manifest("d", device_class="new"))
        assert (await live.until_state("east/c", "Pending"))["reason"]
        assert (await live.until_state("east/d", "Pending"))["reason"] == "UnknownDeviceClass"
        more = slice_manifest(["gpu-0", "gpu-1", "gpu-2", "gpu-3"], fabric="rack", generation=2)
        write_manifests(directories["east"] / "inventory.yaml", class_manifest(), more)
        await live.until_state("east/c", "Allocated")
        write_manifests(directories["east"] / "new.yaml", class_manifest("new"))
        await live.until_state("east/d", "Allocated")


async def test_nonsense_on_the_bus_is_kept_aside_and_everything_else_goes_on(directories: dict[str, Path]) -> None:
    claims = directories["east"] / "claims.yaml"
    async with live_up(directories) as live:
        write_manifests(claims, claim_manifest("a"))
        uid = (await live.until_state("east/a", "Allocated"))["uid"]
        async with connect_to(await live.url()) as connection:
            found = await StreamReader(connection, "DRA_STATE").last(f"dra.v1.state.east.claim.{uid}")
            assert found is not None
            older = json.loads(found.payload) | {"agent_epoch": 0}
            nonsense = {
                "NotJSON": ("dra.v1.state.east.claim.no-json", b"\xff not json"),
                "UnknownType": ("dra.v1.state.east.slice.rack-9", b'{"type": "dev.dragoman.state.object.v9"}'),
                "Malformed": ("dra.v1.state.west.class.odd", b'{"type": "dev.dragoman.state.object.v1"}'),
                "LowerEpoch": (found.subject, json.dumps(older).encode()),
                "UnknownSubject": ("dra.v1.state.east.weather.sunny", b"{}"),
                "UnknownCluster": ("dra.v1.state.north.claim.x", b"{}"),
            }
            sequences = {}
            for reason, (subject, payload) in nonsense.items():
                sequences[reason] = await store(connection, OutgoingMessage(subject, payload))
            letters: dict[str, DeadLetter] = {}
            with anyio.fail_after(30):
                async with follow(connection, "DRA_DEADLETTER") as follower:
                    while letters.keys() != nonsense.keys():
                        batch = await follower.next_batch()
                        assert isinstance(batch, list)
                        for message in batch:
                            letter = decode_call(message.payload)
                            assert isinstance(letter, DeadLetter)
                            assert message.subject == f"dra.v1.deadletter.{letter.cluster}"
                            letters[letter.reason] = letter
        for reason, (subject, payload) in nonsense.items():
            letter = letters[reason]
            assert (letter.subject, letter.stream_sequence) == (subject, sequences[reason])
            assert letter.payload == payload
            told = f"{reason}: {subject} at {sequences[reason]}: {letter.message}"
            await live.until(told, lambda live: told in live.err)  # noqa: B023
        write_manifests(claims, claim_manifest("a"), claim_manifest("b"))
        await live.until_state("east/b", "Allocated")
        assert live.rows["east/a"]["uid"] == uid
        assert live.rows["east/a"]["state"] == "Allocated"


async def test_finds_everything_again_after_it_was_killed(directories: dict[str, Path], tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "data")]
    claims = directories["west"] / "claims.yaml"
    async with live_up(directories, data) as live:
        write_manifests(claims, claim_manifest("a"), claim_manifest("b"), claim_manifest("c"))
        for claim in ("west/a", "west/b"):
            await live.until_state(claim, "Allocated")
        await live.until("c waits", lambda live: live.rows.get("west/c", {}).get("reason") == "DevicesInUse")
        before = live.rows
        await live.kill()
    write_manifests(claims, claim_manifest("a"), claim_manifest("c"), claim_manifest("d"))  # while nobody looks
    async with live_up(directories, data) as live:
        c = await live.until_state("west/c", "Allocated")
        assert c["uid"] == before["west/c"]["uid"]
        assert c["results"] == before["west/b"]["results"]
        assert (await live.until_state("west/a", "Allocated")) == before["west/a"]
        await live.until("d waits", lambda live: live.rows.get("west/d", {}).get("reason") == "DevicesInUse")
        await live.until("b gone", lambda live: "west/b" not in live.rows)


# --- dragoman explain


async def explain(live: Live, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    url = await live.url()
    code = await to_thread.run_sync(lambda: main(["explain", *arguments, "--nats", url]))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


async def test_explains_where_a_claim_is_and_why(
    directories: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    memory = 'device.attributes["gpu.example.com"].memory'
    devices: list[Any] = [{"name": f"gpu-{gib}", "attributes": {"memory": {"string": f"{gib}Gi"}}} for gib in (8, 16)]
    write_manifests(directories["east"] / "inventory.yaml", class_manifest(), slice_manifest(devices, fabric="rack"))
    write_manifests(
        directories["east"] / "claims.yaml",
        claim_manifest("as-text", f'{memory} >= "16Gi"', namespace="ml"),
        claim_manifest("too-large", f'{memory} == "64Gi"'),
        claim_manifest("both"),
    )
    write_manifests(directories["west"] / "claims.yaml", claim_manifest("both"))
    async with live_up(directories) as live:
        for claim in ("east/as-text", "east/both"):
            await live.until_state(claim, "Allocated")
        for claim in ("east/too-large", "west/both"):
            await live.until(f"{claim} waits", lambda live: live.rows.get(claim, {}).get("reason"))  # noqa: B023
        code, out, err = await explain(live, capsys, "ml/as-text")
        assert (code, err) == (0, "")
        assert "gpu: rack/gpu-16" in out
        assert f'warning: request gpu, selector 0: {memory} >= "16Gi"' in out
        assert "compares text" in out
        assert f'write instead: quantity({memory}).compareTo(quantity("16Gi")) >= 0' in out

        code, out, _ = await explain(live, capsys, "too-large")
        assert code == 0
        assert "Pending" in out
        assert "request gpu: needs 1, 0 of the 2 devices of class gpu can be used" in out
        assert "2 ruled out" in out
        assert "waiting for" in out

        code, out, _ = await explain(live, capsys, "default/both", "-o", "json")
        assert code == 0
        assert [each["claim"]["cluster"] for each in json.loads(out)] == ["east", "west"]
        code, out, _ = await explain(live, capsys, "default/both", "-o", "json", "--cluster", "west")
        (found,) = json.loads(out)
        assert found["claim"] == live.rows["west/both"]

        code, out, err = await explain(live, capsys, "ml/nobody")
        assert (code, out) == (1, "")
        assert err == "dragoman explain: no claim ml/nobody is known\n"
        code, out, err = await explain(live, capsys, "ml/as-text", "--cluster", "west")
        assert (code, out) == (1, "")
        assert err == "dragoman explain: no claim ml/as-text is known in cluster west\n"


def test_explain_says_what_to_do_without_nats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "default/a", "--nats", "nats://127.0.0.1:1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot connect to NATS at nats://127.0.0.1:1" in printed.err
    assert "give the right address with --nats" in printed.err


async def test_explain_says_when_no_broker_is_there(own_nats: EmbeddedNats, capsys: pytest.CaptureFixture[str]) -> None:
    code = await to_thread.run_sync(lambda: main(["explain", "default/a", "--nats", own_nats.url]))
    assert code == 1
    assert "no broker" in capsys.readouterr().err
