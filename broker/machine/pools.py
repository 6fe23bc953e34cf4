"""A pool changed: who waits for it is due, and what is wrong with it is told.

Slices arrive one by one, so a pool is incomplete at first. That is worth telling only after its source was heard.
"""

from collections.abc import Iterable

from broker.machine.core import Core
from broker.world.keys import ClusterId, PoolKey
from broker.world.pools import Pool


def changed(core: Core, key: PoolKey, source: ClusterId) -> None:
    """A slice of the pool, from `source`, came, changed or went."""
    core.changed(f"scope:{key.scope}", "labels")
    pool = core.world.inventory.pool(key)
    if pool is not None and core.world.cluster(source).is_heard:
        _tell(core, pool)


def all_changed(core: Core) -> None:
    """The taints of any device may have changed."""
    core.changed(*(f"scope:{scope}" for scope in core.world.inventory.scopes()))


def tell_problems(core: Core, scopes: Iterable[str]) -> None:
    """Tell what is wrong with the pools of these scopes."""
    for pool in core.world.inventory.pools_of_scopes(scopes):
        _tell(core, pool)


def _tell(core: Core, pool: Pool) -> None:
    if pool.problem:
        core.notice("warning", "PoolProblem", f"pool {pool.key}", f"not used: {pool.problem}")
    for obsolete in pool.obsolete:
        text = f"ResourceSlice {obsolete} is of an older generation than {pool.generation} and is not used"
        core.notice("warning", "OldGeneration", f"pool {pool.key}", text)
