"""The agent in numbers, for Prometheus: what it asked of its API server and how that ended, and how its run stands."""

import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cluster_agent.app.agent import Agent
from cluster_agent.ports import (
    ApiBusyError,
    ApiConflictError,
    ApiDeniedError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    ApiUncertainError,
    Cluster,
    ExpiredError,
    Kind,
    Listing,
    RestoredError,
    WatchEvent,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RESULTS: dict[type[Exception], str] = {
    ApiConflictError: "conflict",
    ApiNotFoundError: "gone",
    ApiInvalidError: "invalid",
    ApiBusyError: "busy",
    ApiDeniedError: "denied",
    ApiUncertainError: "unknown",
    ExpiredError: "expired",
    RestoredError: "expired",
}


class AgentMetrics:
    """All metrics of one agent process, in a registry of its own. Labels are words of ours alone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Histogram(
            "dragoman_agent_api_call_duration_seconds",
            "Calls of the API server by what is done and how that ended; a list ends when all of it is read.",
            ["call", "result"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.events = Counter(
            "dragoman_agent_watch_events", "What watches brought, without bookmarks.", ["kind"], registry=self.registry
        )
        self.watches = Counter(
            "dragoman_agent_watches", "Watches by how they ended.", ["kind", "result"], registry=self.registry
        )
        self.claim_events = Counter(
            "dragoman_agent_claim_events",
            "Kubernetes Events on claims, by what became of them.",
            ["result"],
            registry=self.registry,
        )
        self._synced = self._gauge("dragoman_agent_synced", "1 once all that its cluster has is told.")
        self._epoch = self._gauge("dragoman_agent_epoch", "Which run of the cluster's agent this is.")
        self._idle = self._gauge("dragoman_agent_idle", "1 if nothing is left to tell or to write.")
        self._objects = Gauge(
            "dragoman_agent_objects", "What the agent follows and tells, by kind.", ["kind"], registry=self.registry
        )
        self._projected = self._gauge("dragoman_agent_classes_projected", "The hub's classes that are here.")
        self._unprojected = self._gauge(
            "dragoman_agent_classes_wrong", "The hub's classes that are not here as they should be; the log says why."
        )
        self._rules = self._gauge(
            "dragoman_agent_taint_rules_projected", "DeviceTaintRules that the agent has made here."
        )
        self._wrong_rules = self._gauge(
            "dragoman_agent_taint_rules_wrong",
            "DeviceTaintRules that the broker wants here and that are not as they should be; the log says why.",
        )

    def count_claim_event(self, result: str) -> None:
        """One of `cluster_agent.app.claim_events.RESULTS`."""
        self.claim_events.labels(result).inc()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    async def refresh(self, agent: Agent) -> None:
        """Set the gauges."""
        self._synced.set(agent.is_synced)
        self._epoch.set(agent.mirror.epoch)
        self._idle.set(agent.is_idle)
        self._objects.clear()
        for name in list(agent.mirror.tracked):
            self._objects.labels(name.kind).inc()
        if agent.classes is not None:
            self._projected.set(agent.classes.projected)
            self._unprojected.set(sum(map(bool, agent.classes.problems.values())))
        if agent.taint_rules is not None:
            self._rules.set(agent.taint_rules.projected)
        self._wrong_rules.set(agent.taint_rules_wrong)

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call takes the time of this block."""
        began, result = time.monotonic(), "ok"
        try:
            yield
        except Exception as error:
            result = _RESULTS.get(type(error), "error")
            raise
        except BaseException:
            result = "cancelled"
            raise
        finally:
            self.calls.labels(name, result).observe(time.monotonic() - began)


class MeasuredCluster:
    """A cluster, each call of which is counted."""

    def __init__(self, cluster: Cluster, metrics: AgentMetrics) -> None:
        self._cluster = cluster
        self._metrics = metrics

    async def list_objects(self, kind: Kind) -> Listing:
        """See Cluster."""
        with self._metrics.call(f"list {kind}"):
            return await self._cluster.list_objects(kind)

    async def watch(self, kind: Kind, resource_version: str) -> AsyncIterator[WatchEvent]:
        """See Cluster."""
        result = "left"
        try:
            async for event in self._cluster.watch(kind, resource_version):
                if event.type != "BOOKMARK":
                    self._metrics.events.labels(kind).inc()
                yield event
            result = "ended"
        except tuple(_RESULTS) as error:
            result = _RESULTS[type(error)]
            raise
        finally:
            self._metrics.watches.labels(kind, result).inc()

    async def get_claim(self, namespace: str, name: str) -> ApiObject | None:
        """See Cluster."""
        with self._metrics.call("get claim"):
            return await self._cluster.get_claim(namespace, name)

    async def get_pod(self, namespace: str, name: str) -> ApiObject | None:
        """See Cluster."""
        with self._metrics.call("get pod"):
            return await self._cluster.get_pod(namespace, name)

    async def update_claim(self, obj: ApiObject) -> ApiObject:
        """See Cluster."""
        return await self._counted("update claim", self._cluster.update_claim(obj))

    async def update_claim_status(self, obj: ApiObject) -> ApiObject:
        """See Cluster."""
        return await self._counted("update claim status", self._cluster.update_claim_status(obj))

    async def _counted(self, name: str, write: Awaitable[ApiObject]) -> ApiObject:
        with self._metrics.call(name):
            return await write
