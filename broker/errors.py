"""Errors of the broker, sorted by what the caller does next. Expected results are values, not exceptions."""

REMEDY = "Nothing is granted on what is left of it: rebuild it from the clusters with `dragoman ledger rebuild`"


class InvariantError(Exception):
    """The committed world is wrong: our bug. Append nothing, stop the process."""


class ConfigError(Exception):
    """The config file is wrong; the text names each field and says what to do."""


class DeposedError(Exception):
    """Someone else leads: stop deciding, and start again from the ledger if our turn comes."""


class CheckpointError(Exception):
    """The checkpoint of a ledger segment is damaged: it is not believed."""

    def __init__(self, segment: int, problem: str) -> None:
        super().__init__(f"the checkpoint of ledger segment {segment} is damaged: {problem}")
        self.segment = segment


class LedgerLostError(Exception):
    """No world can be made from the ledger: segments are missing, or damaged. Grant nothing, stop."""


class UnreadableEntryError(Exception):
    """The ledger has an entry that this build cannot read, so a newer one wrote it: pass nothing over, stop."""


def flat(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    """The single errors of a group of groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
