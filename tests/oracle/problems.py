"""Random allocation problems: small fleets on which everything that DRA has can get in the way of everything else.

Every object is one that the API server takes. A problem has a handful of traits (counters, taints, shares and so on),
so that each is met alone, in company, and not at all.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec

from schemas.resource import (
    AllocationResult,
    CapacityRequestPolicy,
    CapacityRequestPolicyRange,
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceAllocationResult,
    DeviceAttribute,
    DeviceCapacity,
    DeviceClaimConfiguration,
    DeviceClass,
    DeviceConstraint,
    DeviceCounterConsumption,
    DeviceDerivedAttribute,
    DeviceRequest,
    DeviceRequestAllocationResult,
    DeviceSubRequest,
    DeviceTaint,
    DeviceTaintRule,
    DeviceToleration,
    ExactDeviceRequest,
    NodeSelector,
    ObjectMeta,
    ResourceClaim,
    ResourceClaimStatus,
    ResourceSlice,
)
from schemas.resource.taint_rule import DeviceTaintRuleSpec, DeviceTaintSelector
from tests.builders import (
    DRIVER,
    AttributeValue,
    a_claim,
    a_claim_config,
    a_class,
    a_config,
    a_device,
    a_node_selector,
    a_selector,
    a_slice,
    a_taint,
    a_toleration,
)
from tests.oracle.client import NodeStatus, OracleNode, Problem

TRAITS = (
    "admin access",
    "All",
    "alternatives",
    "binding",
    "bound to node",
    "compatibility groups",
    "config",
    "constraints",
    "counters",
    "derived attributes",
    "failing selectors",
    "held",
    "lists",
    "node selection",
    "old generations",
    "per-device nodes",
    "request policies",
    "second driver",
    "selectors",
    "shares",
    "skipped operations",
    "spoilt pools",
    "taint rules",
    "taints",
)
OTHER_DRIVER = "nic.example.com"
TIMEOUT_MS = 200
_A = f'device.attributes["{DRIVER}"]'
_SIZED = [f"{_A}.?size.orValue(0) >= 2", f'{_A}.?model.orValue("") == "a"', f'{_A}.?model.orValue("") != "a"', "true"]
_FAILING = [f"{_A}.fabric.startsWith('x')", f"{_A}.fabric == 'x'"]

T = TypeVar("T")


class ProblemWriter:
    """Writes one problem after the other from one source of chance."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.traits: frozenset[str] = frozenset()

    def problem(self) -> Problem:
        """A new problem; `traits` says what can be in it."""
        count = self._random.choice((0, 1, 2, 3, 3, 4, 5, 6, 8))
        self.traits = frozenset(self._random.sample(TRAITS, count))
        slices = [each for pool in range(self._random.choice((1, 1, 2, 3))) for each in self._pool(pool)]
        devices = [(each, device) for each in slices for device in each.spec.devices]
        return Problem(
            slices=self._shuffled(slices),
            classes=self._classes(),
            taint_rules=[self._taint_rule(n) for n in range(self._random.randint(1, 2))]
            if self._may("taint rules")
            else [],
            nodes=self._nodes(),
            held=self._held(devices) if self._may("held") else [],
            claims=[self._claim(f"claim-{n}") for n in range(self._random.choice((1, 1, 1, 2, 3)))],
            together=self._random.random() < 0.5,
            timeout_ms=TIMEOUT_MS,
        )

    # --- chance

    def _may(self, trait: str) -> bool:
        return trait in self.traits

    def _does(self, trait: str, share: float) -> bool:
        return trait in self.traits and self._random.random() < share

    def _one(self, values: Sequence[T]) -> T:
        return self._random.choice(values)

    def _some(self, values: Sequence[T], most: int) -> list[T]:
        return self._random.sample(values, self._random.randint(0, min(most, len(values))))

    def _shuffled(self, values: Sequence[T]) -> list[T]:
        return self._random.sample(values, len(values))

    # --- the fleet

    def _nodes(self) -> list[OracleNode]:
        nodes = []
        for number in self._shuffled(range(self._random.randint(1, 3) if self._may("node selection") else 1)):
            features = ["DRAOptionalNodeOperations"] if self._does("skipped operations", 0.7) else []
            labels = {"zone": "ab"[number % 2]} if number < 2 else {}
            nodes.append(
                OracleNode(
                    metadata=ObjectMeta(name=f"n{number}", labels=labels),
                    status=NodeStatus(declared_features=features),
                )
            )
        return nodes

    def _classes(self) -> list[DeviceClass]:
        config = [a_config(DRIVER, of="class")] if self._may("config") else []
        return [
            a_class("any", "true", config=config),
            a_class("gpu", f'device.driver == "{DRIVER}"', config=config),
            a_class("big", f'device.driver == "{DRIVER}"', f"{_A}.?size.orValue(0) >= 2"),
        ]

    def _pool(self, number: int) -> list[ResourceSlice]:
        name = f"p{self._one('abc')}{number}"
        driver = OTHER_DRIVER if self._does("second driver", 0.4) else DRIVER
        counters = self._counter_sets()
        count = self._random.choice((1, 1, 2))
        total = count + (1 if counters else 0)
        said = total + 1 if self._does("spoilt pools", 0.2) else total
        slices = [
            self._slice(f"{name}-{index}", driver, name, self._devices(index, counters), slice_count=said)
            for index in range(count)
        ]
        if counters:
            slices.append(self._slice(f"{name}-counters", driver, name, [], slice_count=said, shared_counters=counters))
        if self._does("old generations", 0.5):
            old = self._slice(f"{name}-old", driver, name, self._devices(9, []), slice_count=1)
            pool = msgspec.structs.replace(old.spec.pool, generation=self._random.randint(0, 2))
            slices.append(msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, pool=pool)))
        return slices

    def _slice(self, name: str, driver: str, pool: str, devices: list[Device], **spec: Any) -> ResourceSlice:
        if devices and self._does("per-device nodes", 0.5):
            devices = [msgspec.structs.replace(each, **self._place()) for each in devices]
            place: dict[str, Any] = {"per_device_node_selection": True}
        else:
            place = self._place()
        if devices and self._does("skipped operations", 0.5):
            spec["skip_node_operations"] = ["NodePrepareResources", "NodeUnprepareResources"]
        return a_slice(devices, name=name, driver=driver, pool=pool, **place, **spec)

    def _place(self) -> dict[str, Any]:
        if not self._does("node selection", 0.6):
            return {"all_nodes": True}
        selectors: list[NodeSelector] = [a_node_selector(zone="a"), a_node_selector(zone=["a", "b"])]
        return self._one([{"node_name": self._one(["n0", "n1"])}, {"node_selector": self._one(selectors)}])

    def _counter_sets(self) -> list[CounterSet]:
        if not self._does("counters", 0.8):
            return []
        return [
            CounterSet(
                name=f"set-{number}",
                counters={name: Counter(value=str(self._random.randint(1, 4))) for name in ("slices", "memory")},
            )
            for number in range(self._random.randint(1, 2))
        ]

    def _devices(self, slice_index: int, counters: Sequence[CounterSet]) -> list[Device]:
        count = self._random.choice((0, 1, 2, 2, 3, 3, 4, 5))
        devices = [self._device(f"d{slice_index}{number}", counters) for number in range(count)]
        if devices and self._does("spoilt pools", 0.1):
            devices[-1] = msgspec.structs.replace(devices[-1], name="d00" if slice_index == 1 else devices[-1].name)
        return devices

    def _device(self, name: str, counters: Sequence[CounterSet]) -> Device:
        attributes: dict[str, AttributeValue] = {
            "model": self._one(["a", "b"]),
            "size": self._random.randint(1, 2),
            "rack": self._value(),
        }
        if self._random.random() < 0.7:
            attributes["fabric"] = self._one(["x", "y"])
        if self._random.random() < 0.3:
            attributes["release"] = DeviceAttribute(version=self._one(["1.0.0", "1.0.0+b", "2.0.0"]))
        is_shared = self._does("shares", 0.6)
        return msgspec.structs.replace(
            a_device(name, capacity=None, **attributes),
            capacity=self._capacity(is_shared),
            allow_multiple_allocations=True if is_shared else None,
            taints=[self._taint()] if self._does("taints", 0.4) else [],
            consumes_counters=[self._consumption(each) for each in self._some(counters, 2)],
            **self._binding(),
            binds_to_node=True if self._does("bound to node", 0.3) else None,
        )

    def _binding(self) -> dict[str, list[str]]:
        if not self._does("binding", 0.3):
            return {}
        return {"binding_conditions": ["Attached"], "binding_failure_conditions": ["Broken"]}

    def _value(self) -> AttributeValue:
        if self._does("lists", 0.6):
            return self._random.sample((0, 1, 2, 3), self._random.randint(1, 2))
        return self._random.randint(0, 2)

    def _capacity(self, is_shared: bool) -> dict[str, DeviceCapacity]:
        found = {"memory": DeviceCapacity(value=self._one(["4", "8", "10"]))}
        if self._random.random() < 0.3:
            found["cores"] = DeviceCapacity(value="2")
        if is_shared and self._may("request policies"):
            found["memory"] = DeviceCapacity(value="8", request_policy=self._policy())
        return found

    def _policy(self) -> CapacityRequestPolicy:
        return self._one(
            [
                CapacityRequestPolicy(default=self._one(["1", "3", "500m"])),
                CapacityRequestPolicy(default="2", valid_values=["1", "2", "4"]),
                CapacityRequestPolicy(default="2", valid_range=CapacityRequestPolicyRange(min_="2")),
                CapacityRequestPolicy(
                    default="3", valid_range=CapacityRequestPolicyRange(min_="1", max_="5", step="2")
                ),
                CapacityRequestPolicy(
                    default="1500m", valid_range=CapacityRequestPolicyRange(min_="500m", max_="4500m")
                ),
            ]
        )

    def _consumption(self, counter_set: CounterSet) -> DeviceCounterConsumption:
        name = "missing" if self._does("spoilt pools", 0.05) else counter_set.name
        groups = self._some(["red", "green", "blue"], 2) if self._may("compatibility groups") else []
        taken = self._random.sample(sorted(counter_set.counters), self._random.randint(1, 2))
        return DeviceCounterConsumption(
            counter_set=name,
            counters={each: Counter(value=self._one(["1", "2", "1500m"])) for each in taken},
            compatibility_groups=groups,
        )

    def _taint(self) -> DeviceTaint:
        return a_taint(
            self._one(["example.com/broken", "example.com/other"]),
            self._one(["NoSchedule", "NoSchedule", "NoExecute", "None"]),
            self._one(["", "v"]),
        )

    def _taint_rule(self, number: int) -> DeviceTaintRule:
        selector = self._one(
            [
                DeviceTaintSelector(),
                DeviceTaintSelector(driver=DRIVER),
                DeviceTaintSelector(device=self._one(["d00", "d01", "d10"])),
                DeviceTaintSelector(pool=self._one(["pa0", "pb0", "pa1"])),
                None,
            ]
        )
        spec = DeviceTaintRuleSpec(device_selector=selector, taint=self._taint())
        return DeviceTaintRule(metadata=ObjectMeta(name=f"rule-{number}"), spec=spec)

    def _held(self, devices: Sequence[tuple[ResourceSlice, Device]]) -> list[ResourceClaim]:
        return [
            self._holder(f"holder-{number}", slice_, device)
            for number, (slice_, device) in enumerate(self._some(devices, 3))
        ]

    def _holder(self, name: str, slice_: ResourceSlice, device: Device) -> ResourceClaim:
        is_shared = bool(device.allow_multiple_allocations)
        result = DeviceRequestAllocationResult(
            request="r",
            driver=slice_.spec.driver,
            pool=slice_.spec.pool.name,
            device=device.name,
            admin_access=True if self._does("admin access", 0.3) else None,
            share_id=f"00000000-0000-4000-8000-{self._random.randrange(10**12):012}" if is_shared else None,
            consumed_capacity={each: self._one(["1", "2", "500m"]) for each in device.capacity} if is_shared else {},
        )
        allocation = AllocationResult(devices=DeviceAllocationResult(results=[result]))
        return ResourceClaim(
            metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}"),
            status=ResourceClaimStatus(allocation=allocation),
        )

    # --- claims

    def _claim(self, name: str) -> ResourceClaim:
        count = self._random.choice((1, 1, 2, 2, 3))
        constrained = self._constraints([f"r{number}" for number in range(count)])
        requests = [self._request(f"r{number}", constrained) for number in range(count)]
        names = [each.name for each in requests]
        names += [f"{each.name}/{sub.name}" for each in requests for sub in each.first_available]
        constraints = [
            msgspec.structs.replace(each, requests=self._some(names, 2))
            if not each.requests and self._random.random() < 0.2 and not any(_derives(request) for request in requests)
            else each
            for each in constrained
        ]
        return a_claim(*requests, name=name, constraints=constraints, config=self._claim_config(names))

    def _claim_config(self, names: Sequence[str]) -> list[DeviceClaimConfiguration]:
        if not self._may("config"):
            return []
        return [a_claim_config(a_config(DRIVER, of="claim"), *self._some(names, 2)) for _ in range(2)]

    def _constraints(self, names: Sequence[str]) -> list[DeviceConstraint]:
        found = []
        for _ in range(self._random.choice((1, 1, 2)) if self._may("constraints") else 0):
            attribute = f"{DRIVER}/{self._one(['model', 'rack', 'rack', 'fabric', 'size', 'release'])}"
            if self._does("derived attributes", 0.5):
                attribute = f"example.com/{self._one(['half', 'kind'])}"
            requests = self._some(names, 2)
            if self._random.random() < 0.6:
                found.append(DeviceConstraint(requests=requests, match_attribute=attribute))
            else:
                found.append(DeviceConstraint(requests=requests, distinct_attribute=attribute))
        return found

    def _request(self, name: str, constraints: Sequence[DeviceConstraint]) -> DeviceRequest:
        derived = self._derived(name, constraints)
        if self._does("alternatives", 0.6):
            subs = [
                DeviceSubRequest(name=f"s{number}", derived_attributes=derived, **self._what())
                for number in range(self._random.randint(1, 3))
            ]
            return DeviceRequest(name=name, first_available=subs)
        admin = True if self._does("admin access", 0.4) else None
        return DeviceRequest(
            name=name, exactly=ExactDeviceRequest(admin_access=admin, derived_attributes=derived, **self._what())
        )

    def _derived(self, name: str, constraints: Sequence[DeviceConstraint]) -> list[DeviceDerivedAttribute]:
        wanted = {
            each.match_attribute or each.distinct_attribute or ""
            for each in constraints
            if not each.requests or name in each.requests
        }
        expressions = {"example.com/half": f"{_A}.size / 2", "example.com/kind": f"{_A}.model + '!'"}
        return [
            DeviceDerivedAttribute(name=each, expression=expressions[each])
            for each in sorted(wanted & expressions.keys())
        ]

    def _what(self) -> dict[str, Any]:
        takes_all = self._does("All", 0.4)
        expressions = self._some(_SIZED, 1) if self._may("selectors") else []
        if self._does("failing selectors", 0.3):
            expressions = [*expressions, self._one(_FAILING)]
        what: dict[str, Any] = {
            "device_class_name": self._one(["any", "gpu", "gpu", "big"]),
            "selectors": [a_selector(each) for each in expressions],
            "allocation_mode": "All" if takes_all else "ExactCount",
            "count": 0 if takes_all else self._one([1, 1, 2, 2, 3]),
            "tolerations": self._tolerations(),
        }
        if self._does("shares", 0.7):
            amounts = {"memory": self._one(["1", "2", "3", "2500m", "9"])}
            if self._random.random() < 0.2:
                amounts["cores"] = "1"
            what["capacity"] = CapacityRequirements(requests=amounts)
        return what

    def _tolerations(self) -> list[DeviceToleration]:
        if not (self._may("taints") or self._may("taint rules")) or self._random.random() < 0.5:
            return []
        key = self._one(["example.com/broken", "example.com/other"])
        return [
            self._one(
                [
                    a_toleration(key),
                    a_toleration(key, "NoSchedule"),
                    a_toleration(key, operator="Equal", value="v"),
                    a_toleration(""),
                ]
            )
        ]


def _derives(request: DeviceRequest) -> bool:
    specs = [request.exactly] if request.exactly is not None else request.first_available
    return any(each.derived_attributes for each in specs)


# --- less of a problem


def minimal(problem: Problem, is_still_one: Callable[[Problem], bool]) -> Problem:
    """What is left when nothing more can be left out; `is_still_one` holds for it as it does for the problem."""
    while True:
        less = next((each for each in _with_one_part_less(problem) if is_still_one(each)), None)
        if less is None:
            return problem
        problem = less


def _with_one_part_less(problem: Problem) -> Iterator[Problem]:
    for part in ("slices", "claims", "held", "taint_rules", "nodes"):
        for fewer in _fewer(getattr(problem, part)):
            if fewer or part not in ("claims", "nodes"):
                yield msgspec.structs.replace(problem, **{part: fewer})
    for index, slice_ in enumerate(problem.slices):
        for devices in _fewer(slice_.spec.devices):
            spec = msgspec.structs.replace(slice_.spec, devices=devices)
            yield msgspec.structs.replace(
                problem, slices=_exchanged(problem.slices, index, msgspec.structs.replace(slice_, spec=spec))
            )
    for index, claim in enumerate(problem.claims):
        for part in ("requests", "constraints", "config"):
            for fewer in _fewer(getattr(claim.spec.devices, part)):
                if fewer or part != "requests":
                    wanted = msgspec.structs.replace(claim.spec.devices, **{part: fewer})
                    spec_less = msgspec.structs.replace(claim.spec, devices=wanted)
                    yield msgspec.structs.replace(
                        problem,
                        claims=_exchanged(problem.claims, index, msgspec.structs.replace(claim, spec=spec_less)),
                    )


def _fewer(parts: Sequence[T]) -> Iterator[list[T]]:
    for index in range(len(parts)):
        yield [*parts[:index], *parts[index + 1 :]]


def _exchanged(parts: Sequence[T], index: int, part: T) -> list[T]:
    return [*parts[:index], part, *parts[index + 1 :]]
