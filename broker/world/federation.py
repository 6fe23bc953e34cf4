"""Who takes part: clusters, fabrics, and which cluster is believed about which pools. Read from a config file."""

from fnmatch import fnmatchcase

import msgspec

from broker.world.keys import ClusterId, cluster_scope, fabric_scope

FABRIC_LABEL = "dragoman.dev/fabric"
BROKERED_LABEL = "dragoman.dev/brokered"
PROJECTED_LABEL = "dragoman.dev/projected"  # on a member's object: its agent has written it, as the broker says
ALLOCATE_ANNOTATION = "dragoman.dev/allocate"


class PoolPattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shell patterns for the driver and the pool name; a pool belongs where both match."""

    driver: str = "*"
    pool: str = "*"

    def matches(self, driver: str, pool: str) -> bool:
        """Whether the pool `pool` of `driver` is meant."""
        return fnmatchcase(driver, self.driver) and fnmatchcase(pool, self.pool)


class Fabric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named set of pools that more than one cluster reaches.

    source: the one cluster whose ResourceSlices are believed for these pools.
    clusters: those that reach the devices; the source only if it runs consumers too.
    """

    name: str
    source: ClusterId
    clusters: list[ClusterId]
    pools: list[PoolPattern]

    def concerns(self, cluster: ClusterId) -> bool:
        """Whether the cluster reaches the fabric or speaks for it; a pool of that name elsewhere is another pool."""
        return cluster == self.source or cluster in self.clusters

    def has_pool(self, driver: str, pool: str) -> bool:
        """Whether the pool is on this fabric."""
        return any(pattern.matches(driver, pool) for pattern in self.pools)


class LedgerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """segment_entries: after so many the ledger goes on in its next segment, and a start need not read more of them."""

    segment_entries: int = 200_000


class DeviceHealth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which types of condition in a claim's status.devices tell whether the device itself is healthy.

    healthy: False for a broken device. unhealthy: True for one, such as a driver's binding failure condition.
    """

    healthy: list[str] = msgspec.field(default_factory=lambda: ["Healthy"])
    unhealthy: list[str] = []


class TaintRuleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """clusters: where agents write a DeviceTaintRule for each NoExecute taint of devices that the cluster reaches."""

    clusters: list[ClusterId] = []


class Federation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that takes part.

    hub: the cluster whose DeviceClasses are everybody's; "" means that each cluster uses its own.
    clusters: in order; more may come by themselves, except where labels are believed.
    believe_labels: a ResourceSlice's label `dragoman.dev/fabric` declares a fabric that every cluster reaches. Only
    where one person owns all input; in a federation a member could otherwise add to a fabric.
    stale_after_s, lost_after_s: how long a cluster's agent may be silent until it is granted nothing new, and until
    nobody knows what became of it.
    """

    fabrics: list[Fabric] = []
    hub: ClusterId = ClusterId("")
    clusters: list[ClusterId] = []
    stale_after_s: float = 30.0
    lost_after_s: float = 300.0
    believe_labels: bool = False
    ledger: LedgerSettings = LedgerSettings()
    device_health: DeviceHealth = DeviceHealth()
    device_taint_rules: TaintRuleSettings = TaintRuleSettings()

    def fabric_of(self, driver: str, pool: str) -> Fabric | None:
        """The first fabric, in the file's order, that has the pool."""
        return next((fabric for fabric in self.fabrics if fabric.has_pool(driver, pool)), None)

    def class_owner(self, cluster: ClusterId) -> ClusterId:
        """Whose DeviceClasses the claims of `cluster` use."""
        return self.hub or cluster

    def must_be_heard(self, fabric: Fabric) -> list[ClusterId]:
        """Whose full syncs must be finished before anything of `fabric` is granted."""
        hub = [self.hub] if self.hub else []
        return sorted({fabric.source, *fabric.clusters, *hub})

    def names(self) -> set[ClusterId]:
        """All clusters that the config names anywhere."""
        concerned = {name for fabric in self.fabrics for name in (fabric.source, *fabric.clusters)}
        return {*self.clusters, *concerned, *([self.hub] if self.hub else [])}

    def scope_by_config(self, cluster: ClusterId, driver: str, pool: str) -> str:
        """The scope of a pool that an allocation in `cluster` names, by the config alone."""
        fabric = self.fabric_of(driver, pool)
        return fabric_scope(fabric.name) if fabric and fabric.concerns(cluster) else cluster_scope(cluster)
