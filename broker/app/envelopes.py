"""Ledger entries and dead letters as messages: subject, id, CloudEvents headers, and of entries the hash chain."""

import hashlib
import os
from collections.abc import Mapping, Sequence

from schemas.wire.bus import OutgoingMessage
from schemas.wire.calls import DeadLetter
from schemas.wire.chain import CHAIN, CHAIN_BEFORE, NAMES, SALT, SALT_BYTES, Message, chain_of, link_of
from schemas.wire.codec import cloud_event_headers, encode, trace_parent
from schemas.wire.ledger import AnyEntry, SegmentOpened, entry_place, names_in
from schemas.wire.subjects import dead_letter_subject, ledger_subject

SOURCE = "/dragoman/broker"


class Envelopes:
    """Makes messages of one broker process for one ledger segment."""

    def __init__(self, shard: str, segment: int, instance: str) -> None:
        self._shard = shard
        self._segment = segment
        self._instance = instance

    def batch(
        self,
        entries: Sequence[AnyEntry],
        first_sequence: int,
        now_ms: int,
        before: Message | None,
        stages: Sequence[Mapping[str, str]] = (),
    ) -> list[OutgoingMessage]:
        """One ledger batch; made once and appended again as it is if nobody knows whether it was stored.

        before: the entry that it follows, whose chain it goes on; None where the ledger begins.
        stages: headers of each entry besides its own, see `StageTimes`.
        """
        chain = chain_of(before)
        salts = os.urandom(SALT_BYTES * len(entries)).hex()
        batch = []
        for index, entry in enumerate(entries):
            message = self._entry(entry, first_sequence + index, now_ms)
            headers, salt = message.headers, ""
            if stages:
                headers.update(stages[index])
            if names := names_in(entry):
                headers[NAMES] = ",".join(names)
                salt = salts[index * 2 * SALT_BYTES : (index + 1) * 2 * SALT_BYTES]
            if isinstance(entry, SegmentOpened):
                headers[CHAIN_BEFORE] = chain
            chain = link_of(chain, message.subject, headers, message.payload, salt)
            if salt:
                headers[SALT] = salt
            headers[CHAIN] = chain
            batch.append(message)
        return batch

    def dead_letter(self, letter: DeadLetter, now_ms: int) -> OutgoingMessage:
        """A dead letter; the same message kept again, after a restart, has the same id and is stored once."""
        text = f"{letter.subject}\0{letter.stream_sequence}\0{letter.reason}"
        event_id = f"dead-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        headers = cloud_event_headers(
            letter,
            event_id=event_id,
            source=SOURCE,
            subject=letter.subject,
            now_ms=now_ms,
            trace=trace_parent(letter.cluster, letter.subject, event_id),
        )
        return OutgoingMessage(dead_letter_subject(letter.cluster), encode(letter), headers)

    def _entry(self, entry: AnyEntry, sequence: int, now_ms: int) -> OutgoingMessage:
        cluster, kind, key = entry_place(entry)
        event_id = f"{self._instance}.{sequence}"
        headers = cloud_event_headers(
            entry,
            event_id=event_id,
            source=SOURCE,
            subject=f"{cluster}/{kind}/{key}",
            now_ms=now_ms,
            trace=trace_parent(cluster, key, event_id),
        )
        return OutgoingMessage(ledger_subject(self._shard, self._segment, cluster, kind, key), encode(entry), headers)
