"""Typed identities: who and what the broker talks about.

Names and namespaces are for people; a claim is its cluster and UID for ever (a recreated claim is another claim).
"""

from typing import NewType

import msgspec

ClusterId = NewType("ClusterId", str)  # a DNS label, unique in the federation
ClaimUid = NewType("ClaimUid", str)


class PoolKey(msgspec.Struct, frozen=True, order=True):
    """A DRA resource pool.

    scope: "fabric/NAME" for a shared pool, "cluster/NAME" for one that belongs to its cluster; two clusters may each
    have a local pool of one name, and they are different pools.
    """

    scope: str
    driver: str
    pool: str

    def __str__(self) -> str:
        return f"{self.scope}/{self.driver}/{self.pool}"


class DeviceKey(msgspec.Struct, frozen=True, order=True):
    """One device of a pool."""

    pool: PoolKey
    device: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.device}"


class ClaimKey(msgspec.Struct, frozen=True, order=True):
    """A ResourceClaim of one cluster; a claim of the same name created later has another UID and is another claim."""

    cluster: ClusterId
    uid: ClaimUid

    def __str__(self) -> str:
        return f"{self.cluster}/{self.uid}"


def fabric_scope(name: str) -> str:
    """The scope of a fabric's pools."""
    return f"fabric/{name}"


def cluster_scope(cluster: ClusterId) -> str:
    """The scope of pools that only their own cluster can reach."""
    return f"cluster/{cluster}"


def is_fabric(scope: str) -> bool:
    """Whether the scope is a fabric's."""
    return scope.startswith("fabric/")
