"""Loopback ports for programs that are restarted on them."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

# Below Linux' range for outgoing connections: there a client that tries to reach a stopped server can be given the
# server's own port, connects to itself, and keeps the server from coming back.
FIRST, LAST = 18000, 32000


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Consecutive ports that nobody listens on, and that no other user of this function is given meanwhile."""
    with ExitStack() as held:
        yield _reserve(count, held)


def _reserve(count: int, held: ExitStack) -> list[int]:
    while True:
        first = random.randrange(FIRST, LAST - count)
        ports = list(range(first, first + count))
        with suppress(OSError), ExitStack() as reserved:
            for port in ports:
                # The UDP port of that number is the reservation: a program can still listen on the TCP port.
                reserved.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
                with socket.socket() as tcp:
                    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    tcp.bind(("127.0.0.1", port))
                    tcp.listen()
            held.push(reserved.pop_all())
            return ports
