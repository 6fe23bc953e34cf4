"""Errors of the broker, sorted by what the caller does next. Expected results are values, not exceptions."""


class InvariantError(Exception):
    """The committed world is wrong: our bug. Append nothing, stop the process."""


class LedgerLostError(Exception):
    """A cluster knows of a decision that the ledger does not: the ledger was lost or cut. Grant nothing."""


class TransientError(Exception):
    """Wait `delay_s`, then try the same again, in order."""

    def __init__(self, message: str, delay_s: float) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class ConfigError(Exception):
    """The config file is wrong; the text names each field and says what to do."""


class DeposedError(Exception):
    """Someone else leads: stop deciding, and start again from the ledger if our turn comes."""
