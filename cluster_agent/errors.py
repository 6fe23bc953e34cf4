"""Errors of the agent, sorted by what the caller does next."""


class AgentReplacedError(Exception):
    """Another agent serves this cluster: stop. Starting again would take the cluster back from it."""


class EvictedError(Exception):
    """An operator has evicted or readmitted the cluster: what this run knows and says counts no more; begin another."""


class NewerLedgerError(Exception):
    """The ledger says something to the cluster that this build cannot read: pass nothing over, stop."""


class ClusterAccessError(Exception):
    """The cluster's API server cannot be used as it is configured: no kubeconfig, a right is missing, an old API."""
