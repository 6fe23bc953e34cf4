"""Errors of the agent, sorted by what the caller does next."""


class AgentReplacedError(Exception):
    """Another agent serves this cluster: stop. Starting again would take the cluster back from it."""
