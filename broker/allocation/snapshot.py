"""What the allocation core sees of the world while it decides one claim, or several that belong together."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from broker.allocation.nodes import NodeView
from broker.world.keys import DeviceKey
from broker.world.pools import Pool
from broker.world.usage import InUse
from schemas.resource import DeviceClass


class Snapshot(msgspec.Struct, frozen=True, eq=False):
    """References into the world, no copies: cheap to make for each claim, valid until the world's next step.

    pools: those that the claim's cluster reaches, as `world.pools.in_allocation_order` puts them.
    classes: by name, those that hold for the claim's cluster.
    nodes: of the cluster, in the order in which to try them; the first that works is taken. None where no Node object
        is known at all: then each node name and each node selector that the devices mention stands for one node.
    node: the only node to try, where the caller has chosen one; it need not be among `nodes`.
    in_use: who holds a device, or shares of it; the counters that held devices draw from follow from that.
    avoid: devices not to use for this claim, because it was rejected on them.
    allows_admin_access: the claims' namespace is labelled so (`requests.ADMIN_ACCESS_LABEL`).
    """

    pools: Sequence[Pool]
    classes: Mapping[str, DeviceClass]
    nodes: Sequence[NodeView] | None = None
    node: str | None = None
    in_use: InUse = msgspec.field(default_factory=InUse)
    avoid: Collection[DeviceKey] = frozenset()
    allows_admin_access: bool = False
