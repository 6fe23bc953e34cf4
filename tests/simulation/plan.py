"""What a seed starts with, and which faults it has, how often. All drawn from the seed."""

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.keys import ClusterId

STALE_AFTER_S, LOST_AFTER_S = 20, 60
SHARES = 2  # of each device of a pool that is shared
POOLS = ("rack7", "rack8")
FAULTS = {  # how often, if at all, relative to the 100 or so of all that goes as it should
    "lost answers": 0.8,  # of each call
    "late requests": 0.5,
    "agents killed": 0.3,  # each of them
    "agents paused": 0.5,
    "second agents": 0.8,
    "brokers killed": 0.4,
    "brokers paused": 0.6,
    "second brokers": 0.4,
    "lost appends": 2.0,
    "partitions": 0.7,
    "state expired": 1.2,
    "state's tail lost": 0.8,
    "lists again": 0.2,
    "deliveries again": 1.0,
    "clusters silent": 0.4,
    "clocks jumped": 0.8,
    "rotations": 1.5,
    "checkpoints damaged": 1.0,
    "ledgers lost": 0.1,
    "ledger's tail lost": 0.2,
    "evictions": 0.4,
    "allocated by strangers": 0.5,
}
CHANGES = {  # the same for what people do, which is no fault
    "delete a claim": 0.8,
    "delete an allocated claim": 0.3,
    "touch a claim": 1.5,
    "clear an allocation": 1.0,
    "reject": 1.0,
    "change slices": 0.5,
    "change the class": 0.3,
    "cordon": 0.4,
    "exclude": 1.0,
    "time leaps": 0.7,
}
PACES, SLOW_PACES = ((1, 5, 20), (5, 20), (10, 30)), ((1,), (1, 3), (1, 5, 20))
USES = {"delete an allocated claim": 8.0, "reject": 3.0}  # in calm seeds, beside those

DEVICES = {"report a device": 1.0, "taint a device": 0.5}  # of one seed in six; the others have none of this


@dataclass(frozen=True)
class Plan:
    """What a seed starts with."""

    members: list[str]
    hub: str
    sources: list[str]  # of each fabric
    reaches: list[list[str]]  # members, by fabric
    pools: dict[str, int]  # fabric of each pool, by index
    devices: dict[str, int]  # by pool
    shared: list[str]  # pools whose devices are allocated in shares
    claims: dict[str, int]  # by member
    found: dict[str, int]  # allocations that are there before anything, by member
    publishes_all: bool
    pods: bool
    warm: bool  # all is at rest when the events begin; else nobody has started yet
    slow: float  # how soon what nobody waits for arrives
    refresh_ms: int
    messages_per_subject: int
    faults: dict[str, float]
    overlaps: bool  # a second agent comes often, and the one before it is slow to notice
    is_late: bool  # what was sent arrives when nobody thinks of it any more
    is_calm: bool  # few faults, so that much is granted, used, given back and granted again
    live_claims: int  # of a member: few, so that much happens to each
    diligence: float  # how often controllers and operators get round to things
    paces: tuple[int, ...]  # how much a process does in one turn, drawn from these
    _together: dict[int, float] = field(default_factory=dict, repr=False)

    @classmethod
    def draw(cls, rng: random.Random) -> "Plan":
        """The plan of a seed."""
        members = ["east", "west", "north"][: rng.choice((2, 3, 3))]
        hub = "hub" if len(members) == 2 or rng.random() < 0.3 else ""  # three clusters at least
        overlaps, theme = rng.random() < 0.2, 0.0
        is_calm = overlaps or (theme := rng.random()) < 0.5
        is_late = not overlaps and theme < 0.15
        names = POOLS[: rng.choice((1, 1, 2))]
        fabrics = rng.randint(1, len(names))
        devices = {pool: rng.randint(*((3, 6) if is_calm else (1, 3))) for pool in names}
        wanted = rng.randint(0, min(2, sum(devices.values())))
        found = dict.fromkeys(members, 0)
        for _ in range(wanted if rng.random() < 0.5 else 0):
            found[rng.choice(members)] += 1
        publishes_all = bool(hub) or rng.random() < 0.5
        loud = rng.uniform(*((0.02, 0.15) if is_calm else (0.2, 2.0)))
        faults = {
            name: loud * often * rng.uniform(0.3, 1.5) if rng.random() < 0.5 else 0.0
            for name, often in (FAULTS | CHANGES).items()
        }
        if is_calm:
            faults |= {name: often * rng.uniform(0.5, 1.5) for name, often in USES.items()}
            faults["change the class"] *= 0.2
            faults |= {name: rng.choice((0, 0, 0, 0.1)) for name in ("ledgers lost", "ledger's tail lost")}
        if overlaps:
            faults |= {"second agents": 1.0, "partitions": 1.0, "late requests": 1.0, "touch a claim": 3.0}
            faults["agents killed"] = 0.0
        if is_late:
            faults |= {"late requests": 1.5, "agents killed": 0.5, "evictions": 0.4, "delete a claim": 1.0}
            faults["ledgers lost"] = rng.choice((0, 0.15))
        # By another generator, so that the others are as they were before devices could break.
        apart = random.Random(repr(rng.getstate()[1][:4]))
        has_devices = apart.random() < 1 / 6
        faults |= {name: often * apart.uniform(0.3, 1.5) * has_devices for name, often in DEVICES.items()}
        return cls(
            members=members,
            hub=hub,
            sources=[hub or rng.choice(members) for _ in range(fabrics)],
            reaches=[members if not index else rng.sample(members, 2) for index in range(fabrics)],
            pools={name: min(index, fabrics - 1) for index, name in enumerate(names)},
            devices=devices,
            shared=[name for name in names if rng.random() < 0.25],
            claims={member: rng.randint(1, 3) for member in members},
            found=found,
            publishes_all=publishes_all,
            pods=rng.random() < 0.5,
            warm=is_calm or rng.random() < 0.5,
            slow=rng.choice((1.5, 0.3, 0.05)) if not is_late else 0.02,
            refresh_ms=rng.choice((10**9, 10**9, 20_000)),
            messages_per_subject=rng.choice((64, 64, 8, 3)),
            faults=faults,
            overlaps=overlaps,
            is_late=is_late,
            is_calm=is_calm,
            live_claims=rng.choice((3, 4, 5)) if is_calm else 5,
            diligence=5.0 if is_calm else 1.0,
            paces=(1, 1, 5, 20) if is_late else rng.choice(PACES if is_calm else SLOW_PACES),
        )

    def together(self, kinds: Collection[str]) -> float:
        """How often one of these comes, if at all."""
        found = self._together.get(id(kinds))
        return (
            found
            if found is not None
            else self._together.setdefault(id(kinds), sum(self.faults[kind] for kind in kinds))
        )

    @property
    def clusters(self) -> list[str]:
        """All that have an agent."""
        return [*self.members, *([self.hub] if self.hub else [])]

    def source_of(self, pool: str) -> str:
        """The cluster that publishes the pool."""
        return self.sources[self.pools[pool]]

    def federation(self) -> Federation:
        """The broker's config."""
        fabrics = [
            Fabric(
                name=f"fab-{index}",
                source=ClusterId(source),
                clusters=[ClusterId(each) for each in self.reaches[index]],
                pools=[PoolPattern(pool=pool) for pool, fabric in self.pools.items() if fabric == index],
            )
            for index, source in enumerate(self.sources)
        ]
        return Federation(
            fabrics=fabrics,
            hub=ClusterId(self.hub),
            clusters=[ClusterId(each) for each in self.clusters],
            stale_after_s=STALE_AFTER_S,
            lost_after_s=LOST_AFTER_S,
        )
