"""The hash chain of the ledger: each entry's header `Dra-Chain` covers the entry, and the chain before it.

Who changes, drops or moves an entry would have to write every header after it anew; an anchor that is kept elsewhere
shows even that. Names of people and of what is theirs go into the chain as one salted digest, so that they can be
erased from a copy without breaking it: `erase` puts "~" in their place, keeps the digest and drops the salt, without
which nobody can find a name by trying.

    Dra-Chain         hex SHA-256 over lines that end with CR LF: the Dra-Chain before it (empty without one), the
                      subject, `name: value` of each header as they stand except the two below it in this list that are
                      marked * and those of NATS other than Nats-Msg-Id, the digest of the names (empty without any), an
                      empty one; then the payload, with "~" in place of each `"key":text` of a name
    Dra-Chain-Before  of a segment's first entry: what the chain goes on from, so that a segment can be checked alone
    Dra-Names         the keys of the payload whose texts (or lists of texts) are names, with commas
    Dra-Salt *        hex of 16 random bytes, where there are names; their digest is hex SHA-256 over it and, one on a
                      line, each `"key":text` as it stands
    Dra-Erased *      the digest, where the names and the salt were erased
"""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache

from schemas.wire.bus import MESSAGE_ID, OutgoingMessage, StoredMessage

CHAIN, CHAIN_BEFORE, NAMES, SALT, ERASED = "Dra-Chain", "Dra-Chain-Before", "Dra-Names", "Dra-Salt", "Dra-Erased"
SALT_BYTES = 16

_OF_NATS = "Nats-"
_NOT_COVERED = (CHAIN, SALT, ERASED)
_TEXT = rb'"[^"\\]*(?:\\.[^"\\]*)*"'  # a JSON text; inside of one no quote is bare, so no key is found there
_GONE = (b'"~"', b'["~"]')

Message = StoredMessage | OutgoingMessage


def chain_of(message: Message | None) -> str:
    """The chain up to and with a message; "" where it has none."""
    return "" if message is None else message.headers.get(CHAIN, "")


def link(before: str, message: Message) -> str:
    """What the message's Dra-Chain has to be, if the chain before it is `before`."""
    headers = message.headers
    covered = {name: value for name, value in headers.items() if _is_covered(name)}
    return link_of(before, message.subject, covered, message.payload, headers.get(SALT, ""), headers.get(ERASED, ""))


def link_of(
    before: str, subject: str, covered: Mapping[str, str], payload: bytes, salt: str, names_digest: str = ""
) -> str:
    """The same of its parts.

    covered: those headers that count and no others, values without space around them.
    names_digest: without a salt, where the names are not there any more.
    """
    names = covered.get(NAMES)
    if names:
        pieces = _names_in(names).split(payload)
        if salt:
            payload = b"~".join(pieces[::2])
            names_digest = hashlib.sha256(salt.encode() + b"\n".join(pieces[1::2])).hexdigest()
        elif all(text.partition(b":")[2] in _GONE for text in pieces[1::2]):
            payload = b"~".join(pieces[::2])
    lines = "".join([f"{name}: {value}\r\n" for name, value in covered.items()])
    head = f"{before}\r\n{subject}\r\n{lines}{names_digest}\r\n\r\n"
    return hashlib.sha256(head.encode() + payload).hexdigest()


def erase(message: StoredMessage) -> StoredMessage:
    """The same entry without its names, for good; it has the same place in the chain."""
    salt = message.headers.get(SALT)
    if not salt:
        return message
    pieces = _names_in(message.headers[NAMES]).split(message.payload)
    texts = pieces[1::2]
    pieces[1::2] = [
        b"%b:%b" % (key, _GONE[text.startswith(b"[")]) for key, _, text in (t.partition(b":") for t in texts)
    ]
    headers = {name: value for name, value in message.headers.items() if name != SALT}
    headers[ERASED] = hashlib.sha256(salt.encode() + b"\n".join(texts)).hexdigest()
    return StoredMessage(message.subject, b"".join(pieces), headers, message.stream_sequence, message.time_ms)


def names_of(message: Message) -> list[bytes]:
    """Its names, each as `"key":text`."""
    names = message.headers.get(NAMES, "")
    return _names_in(names).split(message.payload)[1::2] if names else []


def is_erased(message: Message) -> bool:
    """Whether its names were erased."""
    return ERASED in message.headers


def _is_covered(name: str) -> bool:
    return name == MESSAGE_ID or not (name.startswith(_OF_NATS) or name in _NOT_COVERED)


@lru_cache(maxsize=256)  # as many as there are kinds of entries, and some
def _names_in(names: str) -> re.Pattern[bytes]:
    """Finds `"key":text`. names: as Dra-Names has them."""
    keys = b"|".join(re.escape(name.encode()) for name in names.split(","))
    return re.compile(rb'("(?:%b)":(?:%b|\[%b(?:,%b)*\]))' % (keys, _TEXT, _TEXT, _TEXT), re.DOTALL)
