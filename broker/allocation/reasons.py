"""Why a claim has no devices, as data.

Causes, in the order in which a device is charged to the first that applies: from what will never change for this
claim to what passes by itself. So "5 in use" means five devices that would do if they were free.

1. class selector: a selector of the device class is false
2. request selector: a selector of the request is false
3. selector failed: a selector could not be evaluated on it
4. capacity: it does not have the capacity that is asked for, or only in other amounts
5. derived attribute: a derived attribute of the request could not be computed for it
6. unsupported: it has a field that this release cannot honour
7. node: the node (or every node that may be chosen) does not reach it, or cannot skip the node operations that the
   device has none of; or it binds to a node and none is known
8. pool incomplete: slices of its pool are missing
9. pool invalid: its pool contradicts itself
10. counters: it draws more from shared counters than they have, even if all other devices are free
11. taint: it has a taint that the request does not tolerate
12. in use: someone holds it
13. capacity in use: others have shares of it, and what they leave is too little
14. counters in use: other devices that are held have drawn what it would draw, or do not go together with it
15. avoided: it was rejected for this claim before

What is left can be used. Where that is enough for each request and still nothing fits, the requests compete for the
same devices or a constraint stands in the way. Sentences name the causes the other way round: what may pass first.
"""

from enum import Enum, StrEnum

import msgspec

from broker.world.keys import PoolKey


class Cause(Enum):
    """What rules a device out; see above for the order."""

    CLASS_SELECTOR = "class selector"
    REQUEST_SELECTOR = "request selector"
    SELECTOR_FAILED = "selector failed"
    CAPACITY = "capacity"
    DERIVED_ATTRIBUTE = "derived attribute"
    UNSUPPORTED = "unsupported"
    NODE = "node"
    POOL_INCOMPLETE = "pool incomplete"
    POOL_INVALID = "pool invalid"
    COUNTERS = "counters"
    TAINT = "taint"
    IN_USE = "in use"
    CAPACITY_IN_USE = "capacity in use"
    COUNTERS_IN_USE = "counters in use"
    AVOIDED = "avoided"


class Reason(StrEnum):
    """Why nothing was allocated: the code that machines match on. Codes are never renamed."""

    # The claim or its class; nothing about devices can change these.
    INVALID_SELECTOR = "InvalidSelector"
    UNKNOWN_DEVICE_CLASS = "UnknownDeviceClass"
    INVALID_DEVICE_CLASS = "InvalidDeviceClass"
    TOO_MANY_DEVICES = "TooManyDevices"
    ADMIN_ACCESS_NOT_ALLOWED = "AdminAccessNotAllowed"
    # A selector failed on a device that would have been tried, as upstream an error of the whole allocation.
    SELECTOR_FAILED = "SelectorFailed"
    # What would have to be otherwise, and everything above it too, for the claim to fit.
    DEVICES_AVOIDED = "DevicesAvoided"
    DEVICES_IN_USE = "DevicesInUse"
    DEVICES_TAINTED = "DevicesTainted"
    POOL_INVALID = "PoolInvalid"
    POOL_INCOMPLETE = "PoolIncomplete"
    NO_MATCHING_NODE = "NoMatchingNode"
    UNSUPPORTED_FEATURE = "UnsupportedFeature"
    CONSTRAINT_UNSATISFIABLE = "ConstraintUnsatisfiable"
    NO_MATCHING_DEVICE = "NoMatchingDevice"
    # We do not know whether it fits, or it does not and we do not know why.
    SEARCH_BUDGET_EXCEEDED = "SearchBudgetExceeded"


class RuledOut(msgspec.Struct, frozen=True):
    """How many devices one cause ruled out.

    detail: which selector, taint, holders, field or pool; the first few.
    """

    cause: Cause
    count: int
    detail: str = ""


class RequestReport(msgspec.Struct, frozen=True):
    """What became of the devices for one request, or for one alternative of it.

    claim: "namespace/name".
    request: "main", or "main/sub" for an alternative.
    devices: all in the pools that the cluster reaches; each is in of_class or ruled out by the class.
    of_class: those for which the class's selectors are not false.
    needed: how many the request asks for; for All, how many match on the node where the fewest are missing.
    usable: those that nothing rules out by itself. Several may draw from the same counters.
    nearest: how many of the needed ones can be had together, as far as one node and one constraint can tell.
    nearest_where: what those have in common, such as "with the same gpu.example.com/fabric (fab-3)".
    ruled_out: in the order of Cause; a count of 0 is a pool that holds up All although none of its devices match.
    """

    claim: str
    request: str
    device_class: str
    devices: int
    of_class: int
    takes_all: bool
    needed: int
    usable: int
    nearest: int
    nearest_where: str
    ruled_out: tuple[RuledOut, ...]


class WaitsOn(msgspec.Struct, frozen=True):
    """What could change the answer. As long as none of it changes, asking again gives the same answer.

    pools: a device of one of these becoming free; those with a matching device that is held, in part or as a whole,
        or avoided, or that draws from counters as held ones do.
    classes: one of these device classes appearing or changing.
    slices: any slice that the cluster reaches appearing, changing or going.
    nodes: nodes of the cluster appearing, changing or going.
    Where a selector failed, also any device being given away: it is not asked about what is held.
    """

    pools: tuple[PoolKey, ...] = ()
    classes: tuple[str, ...] = ()
    slices: bool = False
    nodes: bool = False


class NoFit(msgspec.Struct, frozen=True):
    """No allocation, and why.

    message: one sentence for people, about what they can change.
    requests: in the order of claims, requests and alternatives; empty if the search did not get to devices. The last
        ones are missing where counting took too long.
    """

    reason: Reason
    message: str
    requests: tuple[RequestReport, ...] = ()
    waits_on: WaitsOn = WaitsOn()
