"""`dragoman claims` and `dragoman pools` against a broker that runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from broker.cli.main import main
from tests.cli.live import Live, live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import own_nats

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
