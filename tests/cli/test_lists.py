"""`dragoman claims` and `dragoman pools` against a broker that runs."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anyio import to_thread

from broker.app.api import PAGE_BYTES, PAGE_ROWS, ListCall, Page
from broker.cli.main import main
from schemas.client.api import ApiError, call_api
from tests.cli.live import Live, live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import connect_to, own_nats

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]


async def shown(live: Live, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    url = await live.url()
    assert await to_thread.run_sync(lambda: main([*arguments, "--nats", url])) == 0
    return capsys.readouterr().out


async def test_show_who_has_what_and_what_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directories = {name: tmp_path / name for name in ("east", "west")}
    write_manifests(directories["east"] / "all.yaml", class_manifest(), slice_manifest(["gpu-0"], fabric="rack"))
    write_manifests(directories["west"] / "all.yaml", class_manifest())
    async with live_up(directories) as live:
        write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"))
        await live.until_state("east/a", "Allocated")
        write_manifests(directories["west"] / "claims.yaml", claim_manifest("b", namespace="ml"))
        await live.until("west/b waits", lambda live: any("DevicesInUse" in str(row) for row in live.rows.values()))

        table = await shown(live, capsys, "claims")
        lines = {line.split()[1]: line.split() for line in table.splitlines() if line.startswith(("east ", "west "))}
        assert lines["default/a"][2:] == ["Allocated", "gpu:", "rack/gpu-0"]
        assert lines["ml/b"][2:] == ["Pending", "-", "DevicesInUse"]

        async def names(*chosen: str) -> list[str]:
            rows: list[dict[str, Any]] = json.loads(await shown(live, capsys, "claims", "-o", "json", *chosen))
            return [row["name"] for row in rows]

        assert await names() == ["a", "b"]
        assert await names("--state", "Pending") == await names("--namespace", "ml") == ["b"]
        assert await names("--cluster", "east") == ["a"]
        assert await names("--cluster", "east", "--state", "Pending") == []

        assert "rack  gpu.example.com  fabric/rack        1     0" in await shown(live, capsys, "pools")
        [pool] = json.loads(await shown(live, capsys, "pools", "-o", "json"))
        assert (pool["pool"], pool["devices"], pool["free"]) == ("rack", 1, 0)


MANY = 7_000  # claims, of which the list has more than one answer may have


async def test_lists_what_does_not_fit_into_one_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directories = {name: tmp_path / name for name in ("east", "west")}
    write_manifests(directories["east"] / "all.yaml", class_manifest(), slice_manifest(["gpu-0"], fabric="rack"))
    write_manifests(directories["west"] / "all.yaml", class_manifest())
    write_manifests(directories["west"] / "claims.yaml", *(claim_manifest(f"c-{number:05}") for number in range(MANY)))
    write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"), claim_manifest("b"))
    async with live_up(directories) as live:
        await live.until("all claims are known", lambda live: len(live.rows) == MANY + 2)
        expected = ["a", "b", *(f"c-{number:05}" for number in range(MANY))]

        async def names(*chosen: str) -> list[str]:
            return [row["name"] for row in json.loads(await shown(live, capsys, "claims", "-o", "json", *chosen))]

        assert await names() == expected
        assert await names("--cluster", "west") == expected[2:]
        assert await names("--cluster", "east") == expected[:2]

        async with connect_to(await live.url()) as connection:

            async def part(call: ListCall) -> Page:
                return msgspec.json.decode(await call_api(connection, "claims", msgspec.json.encode(call)), type=Page)

            first = await part(ListCall())
            assert len(first.rows) <= PAGE_ROWS
            assert sum(map(len, first.rows)) <= PAGE_BYTES
            second = await part(ListCall(after=first.more_after, limit=3))
            at = len(first.rows)
            assert [json.loads(bytes(row))["name"] for row in second.rows] == expected[at : at + 3]
            assert second.more_after[2] == expected[at + 2]
            last = await part(ListCall(after=["west", "default", expected[-2], "z"]))
            assert (len(last.rows), last.more_after) == (1, [])
            # Who asks for all at once is told that it is too much, or gets all of what is little.
            with pytest.raises(ApiError, match="more than NATS takes: ask for less"):
                await call_api(connection, "claims", b"")
            assert len(json.loads(await call_api(connection, "pools", b""))) == 1
            for wrong in (b'{"limit":0}', b'{"after":"x"}', b'{"claims":1}'):
                with pytest.raises(ApiError) as refused:
                    await call_api(connection, "claims", wrong)
                assert refused.value.code == 400
            for verb in ("pools", "devices", "clusters"):
                page = msgspec.json.decode(await call_api(connection, verb, b'{"limit":1}'), type=Page)
                assert (len(page.rows), page.more_after) == {
                    "pools": (1, []),
                    "devices": (0, []),
                    "clusters": (1, ["east"]),
                }[verb]
