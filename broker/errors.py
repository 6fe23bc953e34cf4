"""Errors of the broker, sorted by what the caller does next. Expected results are values, not exceptions."""


class InvariantError(Exception):
    """The committed world is wrong: our bug. Append nothing, stop the process."""


class ConfigError(Exception):
    """The config file is wrong; the text names each field and says what to do."""


class DeposedError(Exception):
    """Someone else leads: stop deciding, and start again from the ledger if our turn comes."""
