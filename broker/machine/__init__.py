"""State messages in, ledger batches out: the sole writer of the world. See `machine`."""

from broker.machine.effects import Effects, Identity, Notice
from broker.machine.machine import Machine

__all__ = ["Effects", "Identity", "Machine", "Notice"]
