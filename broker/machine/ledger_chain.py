"""Does each entry of a ledger go on from what stands before it? See `schemas.wire.chain`.

What the chain alone cannot show is a ledger that was written anew from some entry to its end: for that an anchor is
kept elsewhere.
"""

import msgspec

from schemas.wire.bus import StoredMessage
from schemas.wire.chain import CHAIN, CHAIN_BEFORE, chain_of, is_erased, link
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import LeaderElected, SegmentClosed, SegmentOpened


class Unchained(msgspec.Struct):
    """Entries without a chain, from `first` to `last`: an older build wrote them."""

    first: int
    last: int


class ChainHead(msgspec.Struct, frozen=True):
    """The last entry that is in the chain. time: its ce-time."""

    segment: int
    ledger_sequence: int
    chain: str
    time: str


class ChainFound(msgspec.Struct, frozen=True):
    """The chain, as far as it was read. entries: that are in it; erased: of which the names were erased."""

    entries: int
    erased: int
    unchained: list[Unchained]
    head: ChainHead | None


class ChainCheck:
    """Tell it of the entries in order: `begin` for each segment, then each of them."""

    def __init__(self) -> None:
        self.head: ChainHead | None = None
        self.entries = 0
        self.erased = 0
        self.unchained: list[Unchained] = []
        self._left_out: list[int] = []  # that do not go on from the entry before them
        self._before: str | None = None  # Dra-Chain of the entry before, "" where it has none; None: nobody knows
        self._segment = 0
        self._is_first = True

    def begin(self, segment: int, *, follows: bool) -> None:
        """A segment begins. follows: the last entry before it was read, and nothing was wrong with it."""
        self._segment, self._is_first = segment, True
        if not follows:
            self._before = None
        if segment == 0:
            self._before = ""

    def add(self, message: StoredMessage) -> str:
        """The next entry; returns what is wrong with it, "" if nothing is."""
        is_first, self._is_first = self._is_first, False
        found, before = chain_of(message), self._before
        self._before = found
        if not found:
            return self._unchained(message, before)
        self._count(message, found)
        says = message.headers.get(CHAIN_BEFORE) if is_first else None
        if before is None:
            before = says or ""
        elif says is not None and says != before:
            return (
                f"it goes on from {says[:16] or 'nothing'}..., and the entry before it has {before[:16] or 'none'}..."
            )
        if link(before, message) != found:
            what = "it, its headers, or the entry before it" if before else "it, or its headers,"
            return f"{CHAIN} is {found[:16]}..., and it does not fit: {what} was changed, or entries were left out"
        return ""

    def leave_out(self, message: StoredMessage) -> None:
        """The next entry, which counts for nothing, though the one after it may go on from it."""
        found, before = chain_of(message), self._before
        if before is not None and (found or before) and link(before, message) != found:
            self._left_out.append(message.stream_sequence)
        self._before = found

    def found(self) -> ChainFound:
        """All that is known of it."""
        return ChainFound(self.entries, self.erased, self.unchained, self.head)

    def notes(self) -> list[str]:
        """What is no fault, and yet to be known."""
        found = [
            f"entries {each.first} to {each.last} are not chained: a build before the hash chain wrote them"
            for each in self.unchained
        ]
        found += [
            f"entry {each}, which counts for nothing, does not go on from the one before it: the chain behind it proves"
            " nothing of what is before it"
            for each in self._left_out
        ]
        if self.erased:
            found.append(f"of {self.erased} entries the names were erased; the chain covers a digest of them")
        return found

    def _count(self, message: StoredMessage, found: str) -> None:
        self.entries += 1
        self.erased += is_erased(message)
        self.head = ChainHead(self._segment, message.stream_sequence, found, message.headers.get("ce-time", ""))

    def _unchained(self, message: StoredMessage, before: str | None) -> str:
        if before == "" and self.unchained:
            self.unchained[-1].last = message.stream_sequence
            return ""
        self.unchained.append(Unchained(message.stream_sequence, message.stream_sequence))
        if not before:
            return ""
        # Only another leader can be of an older build; it begins so, or a rebuild by one does.
        try:
            entry = decode_entry(message.payload)
        except WireError:
            entry = None
        if isinstance(entry, LeaderElected | SegmentOpened | SegmentClosed):
            return ""
        return f"it has no {CHAIN}, and the entry before it has one"
