"""`dragoman device` and `explain` against a broker that runs: devices that are broken or drained."""

import json
from pathlib import Path

import msgspec
import pytest
from anyio import to_thread

from broker.app.api import ClusterCall
from broker.cli.main import main
from schemas.client.api import call_api
from tests.cli.live import Live, live_up
from tests.manifests import DRIVER, claim_manifest, class_manifest, holding, slice_manifest, write_manifests
from tests.nats_fixture import connect_to

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

BROKEN = {
    "type": "Healthy",
    "status": "False",
    "reason": "Xid",
    "message": "[79] off the bus",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """East has two devices, and a claim whose driver reports that the first one is broken."""
    east, west = tmp_path / "east", tmp_path / "west"
    inventory = slice_manifest(["gpu-0", "gpu-1"], fabric="rack")
    found = holding(claim_manifest("found"), "gpu-0")
    device = {"driver": DRIVER, "pool": "rack", "device": "gpu-0"}
    network = {"interfaceName": "net1", "ips": ["10.0.0.7/24"]}
    found["status"]["devices"] = [{**device, "conditions": [BROKEN], "networkData": network}]
    write_manifests(east / "inventory.yaml", class_manifest(), inventory, found)
    write_manifests(west / "inventory.yaml", class_manifest())
    return {"east": east, "west": west}


async def dragoman(live: Live, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    url = await live.url()
    code = await to_thread.run_sync(lambda: main([*arguments, "--nats", url]))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


async def test_shows_a_broken_device_and_drains_another(
    directories: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    async with live_up(directories) as live:
        await live.until_state("east/found", "Allocated")
        _, out, _ = await dragoman(live, capsys, "explain", "default/found", "-o", "json")
        (device,) = json.loads(out)[0]["devices"]
        assert device["conditions"] == [{key: BROKEN[key] for key in ("type", "status", "reason", "message")}]
        assert device["addresses"] == ["net1", "10.0.0.7/24"]
        _, out, _ = await dragoman(live, capsys, "explain", "default/found")
        assert f"device {DRIVER}/rack/gpu-0 (net1, 10.0.0.7/24)" in out
        assert "reports Healthy=False (Xid: [79] off the bus)" in out
        assert "tainted dragoman.dev/unhealthy:NoSchedule by claim east/default/found: Healthy=False: Xid" in out

        gpu_1 = f"{DRIVER}/rack/gpu-1"
        order = ("--reason", "fan is loud", "--operator", "ada")
        code, out, _ = await dragoman(live, capsys, "device", "taint", gpu_1, *order)
        assert (code, out.startswith(f"device {gpu_1} is tainted")) == (0, True)
        write_manifests(directories["west"] / "claims.yaml", claim_manifest("b"))
        await live.until("b waits", lambda live: live.rows.get("west/b", {}).get("reason"))
        assert live.rows["west/b"]["reason"] in ("DevicesInUse", "DevicesTainted")

        _, out, _ = await dragoman(live, capsys, "device", "list", "-o", "json")
        broken, drained = json.loads(out)
        assert (broken["device"], broken["holders"]) == ("gpu-0", ["east/default/found"])
        assert drained["taints"][0] | {"since_ms": 0, "ledger_sequence": 0} == {
            "key": "dragoman.dev/maintenance",
            "effect": "NoSchedule",
            "by": "ada",
            "reason": "fan is loud",
            "since_ms": 0,
            "ledger_sequence": 0,
        }
        code, out, _ = await dragoman(live, capsys, "device", "list")
        assert "fan is loud" in out

        # An order is answered with what it is about, however much else there is.
        async with connect_to(await live.url()) as connection:
            for verb in ("taint", "untaint"):
                call = {"verb": verb, "driver": DRIVER, "pool": "rack", "device": "gpu-1", "key": "ada.dev/loud"}
                call |= {"operator": "ada", "reason": "still loud"}
                answer = await call_api(connection, "device", json.dumps(call).encode())
                assert [row["device"] for row in json.loads(answer)] == ["gpu-1"]
            cordon = ClusterCall("cordon", "west", "ada", "maintenance")
            answer = await call_api(connection, "cluster", msgspec.json.encode(cordon))
            assert [row["cluster"] for row in json.loads(answer)] == ["west"]
            uncordon = msgspec.structs.replace(cordon, verb="uncordon")
            await call_api(connection, "cluster", msgspec.json.encode(uncordon))
        code, _, err = await dragoman(live, capsys, "device", "untaint", f"{DRIVER}/rack/gpu-0", *order)
        assert code == 1
        assert "east/default/found holds device fabric/rack/" in err

        assert (await dragoman(live, capsys, "device", "untaint", gpu_1, *order))[0] == 0
        row = await live.until_state("west/b", "Allocated")
        assert [result["device"] for result in row["results"]] == ["gpu-1"]


@pytest.mark.parametrize(
    ("arguments", "sentence", "exit_code"),
    [
        (["taint", "gpu-0", "--reason", "x"], "'gpu-0' is not DRIVER/POOL/DEVICE", 2),
        (["taint", f"{DRIVER}/rack/gpu-7", "--reason", "x"], f"no device {DRIVER}/rack/gpu-7 is published", 1),
        (["taint", f"{DRIVER}/rack/gpu-1", "--reason", " "], "reason: the ledger keeps why; taint needs one", 1),
        (["taint", f"{DRIVER}/rack/gpu-1", "--reason", "x", "--key", "a b"], "key: ", 1),
        (
            ["taint", f"{DRIVER}/rack/gpu-1", "--reason", "x", "--effect", "NoExecute"],
            "nothing would end pods that have device fabric/rack/",
            1,
        ),
        (["untaint", f"{DRIVER}/rack/gpu-1", "--reason", "x"], "the broker keeps no taint of device fabric/rack/", 1),
    ],
)
async def test_says_why_not(
    directories: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
    exit_code: int,
) -> None:
    async with live_up(directories) as live:
        await live.until_state("east/found", "Allocated")
        code, out, err = await dragoman(live, capsys, "device", *arguments)
        assert (code, out) == (exit_code, "")
        assert err.startswith(f"dragoman device: {sentence}")
