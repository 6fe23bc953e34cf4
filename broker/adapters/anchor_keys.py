"""Keys of anchors: NKeys of users, as everybody at NATS has one; made here, never given to a server."""

import base64
import os
from pathlib import Path

import msgspec
import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from broker.adapters.errors import AnchorError
from broker.adapters.nats_config import new_seed, public_key
from schemas.errors import UNREADABLE
from schemas.wire.anchor import FORMAT, Anchor, signed

_KEY_BYTES = 35  # a prefix, 32 of the key, and a checksum


def write_key(path: Path) -> str:
    """A new key, readable by its owner alone; returns its public part. Raises: AnchorError."""
    seed = new_seed()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(seed + "\n")
    except OSError as error:
        raise AnchorError(f"{path} cannot be written: {error.strerror}") from error
    return public_key(seed)


def read_public_key(path: Path) -> str:
    """Of the key in this file. Raises: AnchorError."""
    return _public_key(path, _seed(path))


def sign(anchor: Anchor, path: Path) -> Anchor:
    """The same anchor, signed with the key in this file. Raises: AnchorError."""
    seed = _seed(path)
    named = msgspec.structs.replace(anchor, public_key=_public_key(path, seed))
    signature = nkeys.from_seed(bytearray(seed.encode())).sign(signed(named))
    return msgspec.structs.replace(named, signature=base64.urlsafe_b64encode(signature).decode())


def read_anchor(path: Path, trusted_key: str = "") -> Anchor:
    """An anchor from its file, its signature checked.

    trusted_key: the public key that must have signed it; "" takes the one that it names.
    Raises: AnchorError.
    """
    try:
        anchor = msgspec.json.decode(path.read_bytes(), type=Anchor)
    except OSError as error:
        raise AnchorError(f"{path} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        raise AnchorError(f"{path} is no anchor: {error}") from error
    if anchor.anchor != FORMAT:
        raise AnchorError(f"{path} has format {anchor.anchor!r}, and this build reads {FORMAT}")
    if trusted_key and anchor.public_key != trusted_key:
        raise AnchorError(f"{path} is signed by {anchor.public_key}, not by {trusted_key}")
    raw = _decoded(anchor.public_key)
    if raw is None:
        raise AnchorError(f"{path}: {anchor.public_key!r} is no public NKey of a user")
    try:
        VerifyKey(raw).verify(signed(anchor), base64.urlsafe_b64decode(anchor.signature))
    except (ValueError, BadSignatureError) as error:
        raise AnchorError(f"{path}: its signature is wrong: it was changed, or another key signed it") from error
    return anchor


def is_public_key(text: str) -> bool:
    """Whether that is the public NKey of a user."""
    return _decoded(text) is not None


def _decoded(key: str) -> bytes | None:
    """The 32 bytes of a user's public NKey; None if it is none."""
    try:
        raw = base64.b32decode(key + "=" * (-len(key) % 8))
    except ValueError:
        return None
    if len(raw) != _KEY_BYTES or raw[0] != nkeys.PREFIX_BYTE_USER or nkeys.crc16_checksum(raw[:-2]) != raw[-2:]:
        return None
    return raw[1:-2]


def _seed(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AnchorError(f"{path} cannot be read: {error}") from error


def _public_key(path: Path, seed: str) -> str:
    try:
        return public_key(seed)
    except ValueError as error:
        raise AnchorError(f"{path}: {error}") from error
