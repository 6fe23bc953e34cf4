"""At the end the files, the clusters' objects, the ledger and the broker's world must say the same; each function
returns what does not.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from schemas.quantity import Quantity
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import DeadLetter
from schemas.wire.codec import decode_call, decode_claim_state
from schemas.wire.ledger import Adopted, Allocate, AnyEntry, GrantEnded, Release
from schemas.wire.subjects import parse_state_subject
from tests.chaos.load import DEVICES, SHARE, SHARED_DEVICES, plain_name, wanted
from tests.processes.harness import Row
from tests.processes.ledger_view import Claim, LedgerView

Devices = Counter[tuple[str, str, str]]  # driver, pool, device
GONE = ("ClaimDeleted", "ClaimMissing")
# An agent that was killed may have published something that arrives after its successor's first message.
DEAD_LETTERS_EXPECTED = frozenset({"LowerEpoch"})


class KeptClaim(NamedTuple):
    """A claim as the data directory of its cluster has it."""

    cluster: str
    name: str
    devices: Devices


class StrictView(LedgerView):
    """Where nobody but the agents writes claims: nothing is adopted, and of what is gone nothing is heard again.

    lost: the claims with a grant that was carried out and has ended; they are gone, or being deleted.
    """

    def __init__(self, capacity: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(capacity)
        self.decided: dict[int, Claim] = {}
        self.gone: set[Claim] = set()
        self.lost: dict[Claim, int] = {}

    def _apply(self, entry: AnyEntry) -> None:
        is_new = not self._checkpoint_left
        super()._apply(entry)
        if not is_new:
            return
        match entry:
            case Allocate() | Release():
                claim = (entry.cluster, entry.uid)
                assert claim not in self.gone, f"{self.last} decides about a claim that is gone: {entry}"
                self.decided[self.last] = claim
            case Adopted():
                raise AssertionError(f"{self.last} adopts an allocation that the ledger did not know: {entry}")
            case GrantEnded():
                if entry.cause in GONE:
                    self.gone.add((entry.cluster, entry.uid))
                if entry.grant_sequence in self.applied:
                    self.lost[entry.cluster, entry.uid] = self.last


def files_and_objects(files: Mapping[str, set[str]], objects: Mapping[str, KeptClaim]) -> list[str]:
    """Every claim that was written is there, and no other."""
    problems = []
    for cluster, expected in files.items():
        found = Counter(plain_name(claim.name) for claim in objects.values() if claim.cluster == cluster)
        missing, more = sorted(expected - found.keys()), sorted((found - Counter(expected)).keys())
        if missing or more:
            problems.append(f"{cluster}: claims of files without an object {missing}, objects without a file {more}")
    return problems


def objects_and_ledger(objects: Mapping[str, KeptClaim], view: StrictView) -> list[str]:
    """What claims show is what the ledger granted, and the other way round."""
    granted: dict[str, Devices] = {}
    for (_, uid), devices in view.allocated.items():
        granted.setdefault(uid, Counter()).update(device[1:] for device in devices)
    problems = [
        f"{claim.cluster}/{claim.name} ({uid}) shows {dict(claim.devices)}, the ledger grants "
        f"{dict(granted.get(uid, Counter()))}"
        for uid, claim in objects.items()
        if claim.devices != granted.get(uid, Counter())
    ]
    problems += [
        f"{objects[uid]} lives, and lost what it was given by entry {sequence}"
        for (_, uid), sequence in view.lost.items()
        if uid in objects
    ]
    problems += [f"the ledger grants {uid} devices, which is gone" for uid in granted.keys() - objects.keys()]
    problems += [f"decision {sequence} about {claim} has no outcome" for claim, sequence in view.unsettled.items()]
    not_applied = view.grants.keys() - view.applied
    return problems + [f"grant {sequence} was never carried out" for sequence in sorted(not_applied)]


def objects_and_broker(objects: Mapping[str, KeptClaim], rows: Iterable[Row]) -> list[str]:
    """What the broker says of each claim is what the claim shows."""
    by_uid = {row.uid: row for row in rows}
    problems = [
        f"claim {uid} is known to {'its cluster' if uid in objects else 'the broker'} alone"
        for uid in sorted(objects.keys() ^ by_uid.keys())
    ]
    for uid in objects.keys() & by_uid.keys():
        row, claim = by_uid[uid], objects[uid]
        told = Counter((each["driver"], each["pool"], each["device"]) for each in row.results)
        if (row.cluster, row.name, told) != claim:
            problems.append(f"claim {uid} is {claim}, the broker says {row}")
    return problems


def reasons(rows: Iterable[Row], view: LedgerView) -> list[str]:
    """Every claim is allocated, or it waits for a reason that is true: nothing that it could have is free."""
    free = DEVICES - len(view.holders)
    amount, share = Quantity.parse("40Gi"), Quantity.parse(SHARE)
    shares = SHARED_DEVICES * int(amount.value / share.value) - sum(len(each) for each in view.shares.values())
    problems = []
    for row in rows:
        if row.state == "Allocated":
            if row.reason:
                problems.append(f"{row} is allocated and has a reason")
            continue
        want = wanted(row.name)
        if want is None:
            is_true = row.reason == "NoMatchingDevice"
        else:
            is_true = row.reason == "DevicesInUse" and (want.devices > free or want.shares > shares)
        if not is_true or not row.message or row.state != "Pending":
            problems.append(f"{row} with {free} devices and {shares} shares free")
        elif view.waiting.get((row.cluster, row.uid)) != row.reason:
            told = view.waiting.get((row.cluster, row.uid))
            problems.append(f"{row} waits for {told} by the ledger")
    return problems


def settled_in_ledger(last_messages: Iterable[StoredMessage], view: StrictView) -> list[str]:
    """What agents say that they carried out, the ledger decided for that claim: no decision was lost."""
    problems = []
    for message in last_messages:
        subject = parse_state_subject(message.subject)
        if subject is None or subject.kind != "claim":
            continue
        decision = decode_claim_state(message.body()).decision
        if decision is not None and view.decided.get(decision.ledger_sequence) != (subject.cluster, subject.key):
            problems.append(f"{message.subject} has settled {decision}, which the ledger does not have")
    return problems


def dead_letters(messages: Iterable[StoredMessage]) -> tuple[Counter[str], list[str]]:
    """How many there are by their reason, and those that should not be."""
    counts: Counter[str] = Counter()
    problems = []
    for message in messages:
        letter = decode_call(message.payload)
        assert isinstance(letter, DeadLetter), message
        counts[letter.reason] += 1
        if letter.reason not in DEAD_LETTERS_EXPECTED:
            problems.append(f"dead letter {letter.reason} of {letter.subject}: {letter.message}")
    return counts, problems
