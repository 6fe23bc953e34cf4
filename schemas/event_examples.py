"""An example of each public event, as `schemas/asyncapi.yaml` shows it: a claim's life, and what may come between."""

from schemas import events
from schemas.events import AnyEvent, ClaimRef, DeviceRef
from schemas.wire.ledger import DeviceHold

TRAIN = ClaimRef("east", "5f0c1c1e-0d1e-4c53-9d0c-2f1d7e3f0a11", "ml", "train-gpu-x7k2p")
OTHER = ClaimRef("west", "9a4d7a52-51f4-4f0e-8f6f-6f3f0f6f2b22", "ml", "infer-gpu-q9d4z")
GPU = DeviceHold("gpu", "gpu.example.com", "rack7", "gpu-3")
DEVICE = DeviceRef("fabric/rack7", "gpu.example.com", "rack7", "gpu-3")
NOON_MS = 1_796_040_000_000

EXAMPLES: tuple[AnyEvent, ...] = (
    events.ClaimPending(
        ledger_sequence=41,
        claim=TRAIN,
        reason="DevicesInUse",
        message="request gpu: 0 of 8 devices of class fabric-gpu can be used: 8 in use",
        since_ms=NOON_MS,
    ),
    events.ClaimRefused(
        ledger_sequence=42,
        claim=OTHER,
        reason="InvalidSelector",
        message="spec.devices.requests[0].exactly.selectors[0].cel.expression does not compile",
    ),
    events.ClaimGranted(ledger_sequence=43, claim=TRAIN, devices=[GPU], pods=["0b8a9a3e-6f57-4d5e-8f3d-d1f6a2b3c4d5"]),
    events.ClaimAllocated(ledger_sequence=44, claim=TRAIN, devices=[GPU], grant=43),
    events.ClaimAllocationFailed(
        ledger_sequence=45, claim=OTHER, grant=40, outcome="Conflict", message="the claim has changed"
    ),
    events.ClaimReleasing(
        ledger_sequence=46,
        claim=TRAIN,
        grant=43,
        devices=[GPU],
        reason="Unschedulable",
        message="its pod found no node for 30 s",
    ),
    events.ClaimReleased(ledger_sequence=47, claim=TRAIN, grant=43, devices=[GPU], cause="AllocationCleared"),
    events.ClaimEvicted(ledger_sequence=48, claim=OTHER, grant=39, devices=[GPU]),
    events.ClaimAdopted(ledger_sequence=49, claim=OTHER, devices=[GPU]),
    events.ClaimCollided(ledger_sequence=50, claim=OTHER, devices=[GPU], held_by=["east/ml/train-gpu-x7k2p"]),
    events.DeviceTainted(
        ledger_sequence=51, device=DEVICE, key="dragoman.dev/unhealthy", effect="NoSchedule", reported_by=TRAIN
    ),
    events.DeviceUntainted(
        ledger_sequence=52, device=DEVICE, key="dragoman.dev/unhealthy", operator="ada", reason="replaced"
    ),
    events.ClusterStale(ledger_sequence=53, cluster="west", heard_ms=NOON_MS),
    events.ClusterLost(ledger_sequence=54, cluster="west", heard_ms=NOON_MS),
    events.ClusterReturning(ledger_sequence=55, cluster="west"),
    events.ClusterLive(ledger_sequence=56, cluster="west"),
    events.ClusterCordoned(ledger_sequence=57, cluster="west", operator="ada", reason="new kernel"),
    events.ClusterUncordoned(ledger_sequence=58, cluster="west", operator="ada"),
    events.ClusterExcluded(ledger_sequence=59, cluster="north", operator="ada", reason="not built yet"),
    events.ClusterIncluded(ledger_sequence=60, cluster="north", operator="ada", reason="not built yet"),
    events.ClusterEvicted(ledger_sequence=61, cluster="west", operator="ada", reason="flooded", is_fenced=True),
    events.ClusterReadmitted(ledger_sequence=62, cluster="west", operator="ada", reason="dry again"),
    events.ClusterBack(ledger_sequence=63, cluster="west"),
    events.ClusterAhead(
        ledger_sequence=64, cluster="west", message="it knows of decision 4711, and the ledger ends at 64"
    ),
)
