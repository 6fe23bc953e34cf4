"""Where NATS is and who we are there, and what of it cannot be used.

All of it is looked at before anybody is called: nats-py closes itself with an assertion where it never began, and looks
for ever for the JWT in a file that has none.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import nkeys

from schemas.client.errors import BusOptionsError

SCHEMES = ("nats", "tls", "ws", "wss")
_A_SEED = "give a file with the seed of an NKey, such as `dragoman nats-config` writes"


class BusOptions(msgspec.Struct, frozen=True):
    """Where NATS is and who we are there.

    credentials_file: a `.creds` file (JWT and NKey seed); else an NKey's seed file, else user and password, else what
        the URL says, else nobody.
    inbox: where answers are heard; a server with permissions gives each user a place of its own.
    ca_file: who vouches for the servers, if not those that the system trusts. Certificate and key: who we are, where
        the servers ask for that. With any of them, or one address with tls://, nothing is sent to a server without TLS.
    """

    servers: Sequence[str] = ("nats://127.0.0.1:4222",)
    name: str = "dragoman"
    credentials_file: str = ""
    nkey_file: str = ""
    user: str = ""
    password: str = ""
    inbox: str = "_INBOX"
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""

    def places(self) -> str:
        """The servers, for people: without passwords."""
        return ", ".join(_without_password(server) for server in self.servers)

    @property
    def asks_for_tls(self) -> bool:
        """Of every server, also of those that a server tells of."""
        is_said = any(server.startswith(("tls://", "wss://")) for server in self.servers)
        return is_said or bool(self.ca_file or self.certificate_file)

    def check(self) -> None:
        """Raises: BusOptionsError, naming the address or file that cannot be used, and what to do."""
        if not self.servers:
            raise BusOptionsError("no server is given: give one with --nats")
        for server in self.servers:
            _check_server(server)
        if len({server.startswith(("ws://", "wss://")) for server in self.servers}) > 1:
            raise BusOptionsError(
                f"--nats {self.places()}: give WebSocket addresses (ws://, wss://) or others, not both"
            )
        self.check_identity()
        self.tls_context()

    def check_identity(self) -> None:
        """Only what is read again at each connect. Raises: BusOptionsError, as `check`."""
        if self.credentials_file:
            _check_credentials(self.credentials_file)
        elif self.nkey_file and not _is_seed(_read("--nkey", self.nkey_file).strip()):
            raise BusOptionsError(f"--nkey {self.nkey_file}: there is no seed of an NKey in it; {_A_SEED}")

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS is to be made with; None for what the system trusts. Raises: BusOptionsError, as `check`."""
        if self.key_file and not self.certificate_file:
            raise BusOptionsError(f"--tls-key {self.key_file}: a key is of no use without --tls-cert, its certificate")
        if not self.ca_file and not self.certificate_file:
            return None
        context = ssl.create_default_context()
        if self.ca_file:
            _read("--tls-ca", self.ca_file)
            try:
                context.load_verify_locations(self.ca_file)
            except ssl.SSLError as error:
                raise BusOptionsError(
                    f"--tls-ca {self.ca_file}: no certificate can be read from it;"
                    " give the certificate (PEM) of the CA that vouches for the servers"
                ) from error
        if self.certificate_file:
            _load_certificate(context, self.certificate_file, self.key_file)
        return context


def _load_certificate(context: ssl.SSLContext, certificate_file: str, key_file: str) -> None:
    given = f"--tls-cert {certificate_file}"
    _read("--tls-cert", certificate_file)
    if key_file:
        _read("--tls-key", key_file)
        given += f", --tls-key {key_file}"
    try:
        # The password is empty: else OpenSSL would ask whoever sits at the terminal.
        context.load_cert_chain(certificate_file, key_file or None, password="")
    except ssl.SSLError as error:
        is_other = error.reason == "KEY_VALUES_MISMATCH"
        why = "the key is not that certificate's" if is_other else "no certificate with its key can be read"
        raise BusOptionsError(f"{given}: {why}; give both as PEM, the key without a password") from error


def _read(argument: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # a name may have a character that no file has
        why = error.strerror if isinstance(error, OSError) else error
        raise BusOptionsError(f"{argument} {file}: it cannot be read ({why}); give a file that can be") from error


def _check_credentials(file: str) -> None:
    lines = _read("--creds", file).split(b"\n")  # nats-py takes lines that end so, and nothing off them
    jwt, seed = _line_after(b"BEGIN NATS USER JWT", lines), _line_after(b"BEGIN USER NKEY SEED", lines)
    if not jwt.isascii() or jwt.split() != [jwt] or not _is_seed(seed):
        raise BusOptionsError(
            f"--creds {file}: there is no JWT of a user with its seed in it; give a file such as `nsc generate creds`"
            " writes, or the seed of an NKey with --nkey"
        )


def _line_after(title: bytes, lines: list[bytes]) -> bytes:
    """b"" if there is none, or if it does not end."""
    places = [number for number, line in enumerate(lines) if title in line]
    return lines[places[0] + 1] if places and places[0] + 2 < len(lines) else b""


def _is_seed(text: bytes) -> bool:
    try:
        nkeys.from_seed(bytearray(text)).wipe()
    except (nkeys.NkeysError, ValueError, TypeError):
        return False
    return True


def _check_server(server: str) -> None:
    scheme, is_said, _ = server.partition("://")
    try:
        parts = urlsplit(server if is_said else f"nats://{server}")
        is_address = bool(parts.hostname) and parts.port != 0  # reading the port is what finds it wrong
    except ValueError:
        is_address = False
    if not is_address or (is_said and scheme not in SCHEMES):
        raise BusOptionsError(
            f"--nats {_without_password(server)!r}: that is no address of a server; give it as nats://HOST:PORT or"
            " tls://HOST:PORT, IPv6 as tls://[2001:db8::1]:4222, and several servers each with a --nats of its own"
        )


def _without_password(server: str) -> str:
    """Also of what is no address at all."""
    scheme, is_said, rest = server.partition("://") if "://" in server else ("", "", server)
    return scheme + is_said + rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
