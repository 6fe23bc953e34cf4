"""What the cluster shows against what the bus was told. Pure: see `mirror`, `settling` and `actions`."""

from cluster_agent.mirror.mirror import Mirror

__all__ = ["Mirror"]
