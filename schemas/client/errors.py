"""What can go wrong at the bus, sorted by what the caller does next."""


class BusError(Exception):
    """Any trouble with NATS."""


class BusUnavailableError(BusError):
    """No answer, or no connection: whether the request took effect is unknown. Wait, then the same again."""


class BusOptionsError(BusError):
    """What we were given to connect with cannot be used: nobody was called, and again would be the same."""


class BusRefusedError(BusError):
    """The server answered with an error.

    code: like HTTP's; err_code: JetStream's own, 0 where it gave none.
    """

    def __init__(self, request: str, code: int, err_code: int, description: str) -> None:
        super().__init__(f"NATS refused {request}: {description} (code {code}, err_code {err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class MessageTooLargeError(BusError):
    """A message is larger than the server takes: split it, or raise `max_payload` in the server's configuration."""

    def __init__(self, subject: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"message for {subject} has {size_bytes} bytes with its headers, NATS takes at most {limit_bytes}:"
            " raise max_payload in the configuration of nats-server"
        )
        self.subject = subject
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class StreamLostError(BusError):
    """A stream ends before a position that was read from it: it was lost, or deleted and created again."""

    def __init__(self, stream: str, position: int, last_sequence: int) -> None:
        super().__init__(
            f"stream {stream} ends at sequence {last_sequence}, but was read up to {position} before:"
            " it was lost, or deleted and created again"
        )
        self.stream = stream
        self.position = position
        self.last_sequence = last_sequence


class StreamGapError(BusError):
    """A message of an append-only stream is missing."""

    def __init__(self, stream: str, sequence: int, found: int) -> None:
        super().__init__(
            f"stream {stream} has sequence {found} where {sequence} was expected: messages of an append-only stream are"
            " missing; restore it from a backup"
        )
        self.stream = stream
        self.sequence = sequence
        self.found = found
