"""`dragoman cluster` against a broker that runs: how clusters stand, and what operators order."""

import json
from pathlib import Path

import pytest
from anyio import to_thread

from broker.adapters.embedded_nats import EmbeddedNats
from broker.cli.main import main
from tests.cli.live import Live, live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import own_nats

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

CONFIG = """\
clusters: [east, west]
fabrics:
  - {name: rack, source: east, clusters: [east, west], pools: [{driver: gpu.example.com}]}
"""


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """East has the inventory of one device; west has the class."""
    found = {name: tmp_path / name for name in ("east", "west")}
    write_manifests(found["east"] / "inventory.yaml", class_manifest(), slice_manifest(["gpu-0"]))
    write_manifests(found["west"] / "inventory.yaml", class_manifest())
    (tmp_path / "config.yaml").write_text(CONFIG)
    return found


async def cluster(live: Live, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    url = await live.url()
    code = await to_thread.run_sync(lambda: main(["cluster", *arguments, "--nats", url]))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


async def state(live: Live, capsys: pytest.CaptureFixture[str], name: str) -> dict[str, object]:
    _, out, _ = await cluster(live, capsys, "list", "-o", "json")
    (row,) = [each for each in json.loads(out) if each["cluster"] == name]
    return dict(row)


async def test_shows_clusters_and_cordons_one(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with live_up(directories, ["--config", str(tmp_path / "config.yaml")]) as live:
        write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"))
        await live.until_state("east/a", "Allocated")
        row = await state(live, capsys, "east")
        assert (row["state"], row["claims"], row["grants"], row["devices"]) == ("Ready", 1, 1, 1)
        assert (await state(live, capsys, "west"))["synced"] is True

        order = ("cordon", "west", "--reason", "new kernel", "--operator", "ada")
        assert (await cluster(live, capsys, *order))[:2] == (
            0,
            "cluster west is cordoned: its claims keep what they have, and get nothing new\n",
        )
        write_manifests(directories["west"] / "claims.yaml", claim_manifest("b"))
        await live.until("b waits", lambda live: live.rows.get("west/b", {}).get("reason") == "ClusterCordoned")
        assert "by ada: new kernel" in live.rows["west/b"]["message"]
        code, out, _ = await cluster(live, capsys, "list")
        assert code == 0
        assert "west: cordoned by ada on 20" in out
        assert (await cluster(live, capsys, "uncordon", "west"))[0] == 0
        await live.until("b waits", lambda live: live.rows.get("west/b", {}).get("reason") == "DevicesInUse")


async def test_an_evicted_cluster_gives_its_devices_away_and_comes_back_without_them(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with live_up(directories, ["--config", str(tmp_path / "config.yaml")]) as live:
        write_manifests(directories["west"] / "claims.yaml", claim_manifest("b"))
        await live.until_state("west/b", "Allocated")
        write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"))
        await live.until("a waits", lambda live: live.rows.get("east/a", {}).get("reason") == "DevicesInUse")

        code, out, _ = await cluster(live, capsys, "evict", "west", "--reason", "flooded", "--fenced", "--yes")
        assert code == 0
        assert "others get its devices" in out
        await live.until_state("east/a", "Allocated")
        assert (await state(live, capsys, "west"))["state"] == "Evicted"
        await live.until("the agent waits", lambda live: "waiting for `dragoman cluster readmit west`" in live.err)

        assert (await cluster(live, capsys, "readmit", "west", "--reason", "dry again"))[0] == 0
        await live.until("b waits", lambda live: live.rows.get("west/b", {}).get("reason") == "DevicesInUse")
        assert (await state(live, capsys, "west"))["state"] == "Ready"
        (directories["east"] / "claims.yaml").unlink()
        await live.until_state("west/b", "Allocated")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cordon", "nord", "--reason", "x"], "there is no cluster nord; known are east, west"),
        (["readmit", "west", "--reason", "x"], "cluster west is not evicted"),
        (["exclude", "west", "--reason", "x"], "nobody waits for cluster west"),
        (["cordon", "west", "--reason", " "], "reason: the ledger keeps why; cordon needs one"),
        (["uncordon", "west", "--operator", " "], "operator: the ledger keeps who ordered it"),
    ],
)
async def test_says_why_not(
    directories: dict[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    async with live_up(directories) as live:
        write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"))
        await live.until("a is there", lambda live: "east/a" in live.rows)
        code, out, err = await cluster(live, capsys, *arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"dragoman cluster: {sentence}")


async def test_says_when_no_broker_is_there(own_nats: EmbeddedNats, capsys: pytest.CaptureFixture[str]) -> None:
    code = await to_thread.run_sync(lambda: main(["cluster", "list", "--nats", own_nats.url]))
    assert code == 1
    assert "no broker answers" in capsys.readouterr().err
