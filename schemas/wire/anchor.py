"""An anchor: a signed statement of where the ledger's hash chain was, kept where the ledger's keepers cannot write.

The chain has no secret, so whoever can write all of the ledger can write another one. Who has an anchor can prove that
it was.
"""

import msgspec

FORMAT = "dragoman.anchor.v1"


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed, and by whom.

    ledger_sequence: of the entry whose Dra-Chain is `chain`. time: when that was made, by the broker's clock.
    signed_at: RFC 3339. public_key: an NKey (Ed25519) of a user, in NATS' form. signature: base64url, over `signed`.
    """

    anchor: str = FORMAT
    shard: str
    segment: int
    ledger_sequence: int
    chain: str
    time: str
    signed_at: str
    public_key: str
    signature: str = ""


def signed(anchor: Anchor) -> bytes:
    """The bytes that are signed: the anchor as compact JSON, fields in their order, its signature empty."""
    return msgspec.json.encode(msgspec.structs.replace(anchor, signature=""))
