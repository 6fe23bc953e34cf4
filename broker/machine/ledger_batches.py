"""Does each entry of a ledger stand in a batch that says what it was decided from?

The last entry of a batch has its inputs (`inputs_of`). A batch is stored as a whole or not at all, so one without an
end was written by nobody who decides. Batches of leaders of an older build open with their inputs
(`LeaderElectedBefore`): where one of those ends nobody can tell.
"""

from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import (
    AnyEntry,
    CheckpointEnds,
    ClusterAhead,
    Inputs,
    LeaderElected,
    LeaderElectedBefore,
    inputs_of,
)


class BatchCheck:
    """Tell it of each segment: `begin`, `opened` when its checkpoint is whole, then of all entries behind that.

    first: of the batch that has begun and has no end yet. opens_with_inputs: the leader is of such an older build; None
    where nobody knows.
    """

    def __init__(self) -> None:
        self.first: StoredMessage | None = None
        self.opens_with_inputs: bool | None = None
        self._is_new = False  # since the election there was nothing but what is part of it
        self._follows_checkpoint = False

    def begin(self, *, follows: bool) -> None:
        """A segment begins. follows: the one before it was read, and nothing was wrong with it."""
        self.first, self._is_new = None, False
        if not follows:
            self.opens_with_inputs = None

    def opened(self) -> None:
        """The segment's checkpoint is whole."""
        self._follows_checkpoint = True

    def add(self, message: StoredMessage, entry: AnyEntry) -> str:
        """The next entry; returns what is wrong with it, "" if nothing is. Nobody is elected within a batch."""
        follows_checkpoint, self._follows_checkpoint = self._follows_checkpoint, False
        if isinstance(entry, LeaderElected):
            self.first, self._is_new = None, True
            self.opens_with_inputs = isinstance(entry, LeaderElectedBefore)
            return ""
        if self._is_new and isinstance(entry, ClusterAhead) and entry.inputs is None:
            return ""  # known when it was elected
        if follows_checkpoint and self.opens_with_inputs is None:
            self.opens_with_inputs = isinstance(entry, Inputs)
        is_new, self._is_new = self._is_new, False
        if self.opens_with_inputs:
            if (is_new or follows_checkpoint) and not isinstance(entry, Inputs):
                return "no inputs come before it, with which each batch of its leader opens"
            return ""
        if follows_checkpoint and not isinstance(entry, CheckpointEnds):
            return "it follows the checkpoint, and neither an election nor CheckpointEnds comes before it"
        inputs = inputs_of(entry)
        if inputs is None:
            self.first = self.first or message
            return ""
        self.first = None
        return "" if inputs.steps else "its batch was decided in no step"
