"""What a step asks the outside to do. Orders, carried out by `broker.app` once the ledger batch is stored."""

from typing import Literal

import msgspec

from schemas.wire.calls import Ask, DeadLetter
from schemas.wire.ledger import AnyEntry

ALGORITHM = 2  # of the allocation core; a decision is replayed by the algorithm that made it


NoticeLevel = Literal["info", "warning", "error"]


class Notice(msgspec.Struct, frozen=True):
    """Something that a person should be told of. code: a stable word to count by; place: what it is about."""

    level: NoticeLevel
    code: str
    place: str
    message: str


class Identity(msgspec.Struct, frozen=True):
    """Who decides: what a batch records of the broker itself."""

    instance: str
    build: str
    settings_digest: str


class Effects(msgspec.Struct):
    """One step's orders.

    entries: one ledger batch; its last entry has the Inputs that led to it. Empty when there is nothing to record. They
    get the ledger sequences from `first_sequence` on, and are appended expecting `first_sequence - 1` to be the last.
    dead_letters: kept before the append, which moves the recorded position past them; keeping one twice does no harm.
    asks, notices, answers: only after the append is known to be stored: what nobody can prove must not be seen.
    answers: to the operators' commands that this step has carried out, in order: why it could not be done, or "".
    causes: of each entry, the DRA_STATE sequence of the message that it follows from; 0: of none.
    """

    entries: list[AnyEntry]
    first_sequence: int
    dead_letters: list[DeadLetter]
    asks: list[tuple[str, Ask]]
    notices: list[Notice]
    answers: list[str]
    causes: list[int] = []
