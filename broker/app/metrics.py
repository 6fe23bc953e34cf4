"""The broker in numbers, for Prometheus: what it did is counted as it goes, how the world stands when somebody asks."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import anyio
from prometheus_client import CollectorRegistry, Gauge, Histogram, Info
from prometheus_client import Counter as CounterMetric

from broker.app.stage_times import Decided
from broker.machine import Machine
from broker.machine.cluster_report import CLUSTER_STATES
from broker.machine.totals import Totals, totals
from broker.world.keys import ClusterId
from schemas.wire.codec import trace_id
from schemas.wire.ledger import AnyEntry

T = TypeVar("T")

ASK_DEADLINE_S = 5.0  # below the time that Prometheus waits for an answer (10 s by default)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class World(Protocol):
    """Whoever can be asked about the machine; see Broker."""

    @property
    def leads(self) -> bool:
        """See Broker."""
        ...

    def ask_world(self, read: Callable[[Machine], T]) -> Awaitable[T]:
        """See Broker."""
        ...

    def heard_ms(self, cluster: ClusterId) -> int:
        """See Broker."""
        ...


class BrokerMetrics:
    """All metrics of one broker process, in a registry of its own.

    Labels are words of ours, and the names of clusters and fabrics: never a claim's, a pod's or a device's.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._build = Info("dragoman_build", "Which build this is.", registry=self.registry)
        self._steps = Histogram(
            "dragoman_step_duration_seconds",
            "One step of the machine: messages applied and claims decided, without storing the result.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._appends = Histogram(
            "dragoman_append_duration_seconds",
            "From sending a batch to the ledger until it is known to be stored.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._decisions = Histogram(
            "dragoman_decision_duration_seconds",
            "From the arrival of a claim's message (or the step in which it was tried again) to its stored decision.",
            ["result"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._entries = CounterMetric(
            "dragoman_ledger_entries", "Entries appended to the ledger.", ["kind"], registry=self.registry
        )
        self._notices = CounterMetric(
            "dragoman_notices",
            "What people were told of, such as a message that was kept aside.",
            ["code"],
            registry=self.registry,
        )
        self._terms = CounterMetric("dragoman_terms", "How often this process began to lead.", registry=self.registry)
        self._leads = self._gauge("dragoman_leader", "1 for the broker that leads.")
        self._claims = self._gauge("dragoman_claims", "Claims by state.", "state")
        self._pending = self._gauge("dragoman_pending_claims", "Claims that wait, by reason.", "reason")
        self._devices = self._gauge(
            "dragoman_devices", "Devices by fabric (or cluster): free, held, unusable.", "scope", "state"
        )
        self._tainted = self._gauge(
            "dragoman_tainted_devices",
            "Devices that the broker keeps from new claims, by who said so: report, operator.",
            "scope",
            "by",
        )
        self._clusters = self._gauge("dragoman_clusters", "1 for the state that a cluster is in.", "cluster", "state")
        self._lags = self._gauge("dragoman_agent_lag_seconds", "Time since a cluster's agent was heard.", "cluster")
        self._ledger = self._gauge("dragoman_ledger_sequence", "The ledger's last entry.")
        self._state = self._gauge("dragoman_state_sequence", "The last message of DRA_STATE that was applied.")

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    # --- what was done

    def is_build(self, build: str, instance: str) -> None:
        """Say which process this is."""
        self._build.info({"build": build, "instance": instance})

    def began_to_lead(self) -> None:
        """A term begins."""
        self._terms.inc()

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of the machine takes the time of this block."""
        with self._steps.time():
            yield

    @contextmanager
    def append(self, entries: Iterable[AnyEntry]) -> Iterator[None]:
        """The entries are stored when this block ends well."""
        with self._appends.time():
            yield
        for kind, number in Counter(type(entry).__name__ for entry in entries).items():
            self._entries.labels(kind).inc(number)

    def decided(self, decisions: Sequence[Decided], now_us: int) -> None:
        """These are stored now, Unix microseconds; the slowest of each result is the example to look at."""
        slowest: dict[str, Decided] = {}
        for each in decisions:
            if each.since_us < slowest.setdefault(each.result, each).since_us:
                slowest[each.result] = each
        for each in decisions:
            example = {"trace_id": trace_id(each.cluster, each.uid)} if slowest[each.result] is each else None
            self._decisions.labels(each.result).observe(max(0, now_us - each.since_us) / 1e6, example)

    def noticed(self, code: str) -> None:
        """People were told of something."""
        self._notices.labels(code).inc()

    # --- how the world stands

    async def refresh(self, world: World) -> None:
        """Set the gauges; those of the world are absent where this broker does not lead, or takes too long to say."""
        found: Totals | None = None
        if world.leads:
            with anyio.move_on_after(ASK_DEADLINE_S):
                found = await world.ask_world(lambda machine: totals(machine.world))
        self._leads.set(1 if found is not None or world.leads else 0)
        for gauge in (self._claims, self._pending, self._devices, self._tainted, self._clusters, self._lags):
            gauge.clear()
        if found is None:
            self._ledger.set(float("nan"))
            self._state.set(float("nan"))
            return
        self._ledger.set(found.ledger_sequence)
        self._state.set(found.state_sequence)
        _set(self._devices, found.devices)
        _set(self._tainted, found.tainted)
        by_state: Counter[str] = Counter()
        for (state, reason), number in found.claims.items():
            by_state[state] += number
            if state == "Pending":
                self._pending.labels(reason).set(number)
        for state in ("Allocated", "Pending", "Invalid"):
            self._claims.labels(state).set(by_state[state])
        for cluster, state in found.clusters.items():
            for each in CLUSTER_STATES:
                self._clusters.labels(cluster, each).set(state == each)
            if heard_ms := world.heard_ms(cluster):
                self._lags.labels(cluster).set(max(0.0, time.time() - heard_ms / 1000))


def _set(gauge: Gauge, values: Mapping[tuple[str, str], int]) -> None:
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
