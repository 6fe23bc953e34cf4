"""IP addresses, CIDR ranges and URLs as the libraries of Kubernetes' CEL read them.

Python's ipaddress and urllib accept other texts than Go's net/netip and net/url, so what differs is checked here.
Source: apiserver, pkg/cel/library/{ip,cidr,urls}.go.
"""

import re
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface, ip_network
from urllib.parse import quote, unquote_to_bytes

import msgspec

_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):", re.ASCII)
_PORT = re.compile(r"(?::[0-9]*)?", re.ASCII)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})", re.ASCII)
_USERINFO = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*", re.ASCII)
# Host characters that need no escape in Go; beyond ASCII all are accepted.
_HOST = re.compile(r"(?:[A-Za-z0-9\-_.~!$&'()*+,;=:\[\]<>\"]|[^\x00-\x7f]|%[89a-fA-F][0-9a-fA-F])*")
_ENCODED_PATH = re.compile(r"(?:[A-Za-z0-9\-_.~!$&'()*+,;=:@/\[\]]|%[0-9a-fA-F]{2})*", re.ASCII)


class IP(msgspec.Struct, frozen=True):
    """An address; equal if it is the same one, however it was written."""

    address: IPv4Address | IPv6Address

    def __str__(self) -> str:
        return str(self.address)


class CIDR(msgspec.Struct, frozen=True):
    """A range that remembers the address it was written with, which counts for equality."""

    interface: IPv4Interface | IPv6Interface

    def __str__(self) -> str:
        return self.interface.with_prefixlen


class URL(msgspec.Struct, frozen=True):
    """An absolute URI or an absolute path, in its parts as they were written; `text` is the whole."""

    text: str
    scheme: str = ""
    host: str = ""
    path: str = ""
    query: str = ""


def parse_ip(text: str) -> IP:
    """Raises: ValueError."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        raise ValueError(f'IP address "{text}" with a zone, or mapped from IPv4, is not allowed')
    return IP(address)


def parse_cidr(text: str) -> CIDR:
    """Raises: ValueError."""
    address, slash, length = text.partition("/")
    if not slash or not _PREFIX_LENGTH.fullmatch(length):
        raise ValueError(f'"{text}" is not an IP address followed by / and a prefix length')
    parse_ip(address)
    return CIDR(ip_interface(text))


def contains_ip(cidr: CIDR, other: IP) -> bool:
    return other.address in cidr.interface.network


def contains_cidr(cidr: CIDR, other: CIDR) -> bool:
    outer, inner = cidr.interface.network, other.interface.network
    return outer.version == inner.version and inner.network_address in outer and outer.prefixlen <= inner.prefixlen


def masked(cidr: CIDR) -> CIDR:
    return CIDR(ip_interface(str(cidr.interface.network)))


def is_link_local_multicast(ip: IP) -> bool:
    if isinstance(ip.address, IPv4Address):
        return ip.address in ip_network("224.0.0.0/24")
    return ip.address.is_multicast and ip.address.packed[1] & 0x0F == 2


def is_global_unicast(ip: IP) -> bool:
    address = ip.address
    return not (
        address == IPv4Address("255.255.255.255")
        or address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
    )


def parse_url(text: str) -> URL:
    """Read an absolute URI or an absolute path.

    Raises: ValueError.
    """
    _check_request_uri(text)
    without_fragment, _, fragment = text.partition("#")
    if _BAD_ESCAPE.search(fragment):
        raise ValueError(f'"{text}" has an invalid escape in its fragment')
    return _split(without_fragment, text, is_request_uri=False)


def is_url(text: str) -> bool:
    try:
        _check_request_uri(text)
    except ValueError:
        return False
    return True


def hostname_and_port(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    if not colon or not _PORT.fullmatch(colon + port):
        name, port = host, ""
    return (name[1:-1] if name.startswith("[") and name.endswith("]") else name), port


def escaped_path(url: URL) -> str:
    if _ENCODED_PATH.fullmatch(url.path) or url.path == "*":
        return url.path
    return quote(unquote_to_bytes(url.path), safe="$&+,/:;=@~")


def query_values(url: URL) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for pair in url.query.split("&"):
        if not pair or ";" in pair or _BAD_ESCAPE.search(pair):
            continue
        name, _, value = pair.partition("=")
        values.setdefault(_unescaped(name), []).append(_unescaped(value))
    return values


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode(errors="replace")


def _check_request_uri(text: str) -> None:
    if not text:
        raise ValueError("a URL must not be empty")
    url = _split(text, text, is_request_uri=True)
    if not url.scheme and not text.startswith("/") and text != "*":
        raise ValueError(f'"{text}" is neither an absolute URI nor an absolute path')


def _split(text: str, whole: str, is_request_uri: bool) -> URL:
    if _CONTROL_CHARACTER.search(text):
        raise ValueError(f"{whole!r} has a control character")
    if text.startswith(":"):
        raise ValueError(f'"{whole}" has no scheme before the colon')
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    rest, _, query = text[match.end() if match else 0 :].partition("?")
    if scheme and not rest.startswith("/"):
        # An opaque URI such as mailto:a@b has no parts that the library could return.
        return URL(whole, scheme, query=query)
    host = ""
    if rest.startswith("//") and (scheme or (not is_request_uri and not rest.startswith("///"))):
        authority, slash, path = rest[2:].partition("/")
        host, rest = _host(scheme, authority, whole), slash + path
    if _BAD_ESCAPE.search(rest):
        raise ValueError(f'"{whole}" has an invalid escape in its path')
    return URL(whole, scheme, host, rest, query)


def _host(scheme: str, authority: str, whole: str) -> str:
    userinfo, _, host = authority.rpartition("@")
    if not _USERINFO.fullmatch(userinfo) or _BAD_ESCAPE.search(userinfo):
        raise ValueError(f'"{whole}" has invalid user information')
    if host.startswith("["):
        address, bracket, port = host.rpartition("]")
        # A zone is written %25ZONE in a URL. Raises ValueError itself for what is no address.
        if not bracket or not _PORT.fullmatch(port) or ip_address(address[1:].replace("%25", "%")).version != 6:
            raise ValueError(f'"{whole}" has an invalid IP address as its host')
        return host
    # Elsewhere than in http several hosts with ports may be listed, so only what follows the last colon is a port.
    _, colon, port = host.partition(":") if scheme in ("http", "https") else host.rpartition(":")
    if colon and not _PORT.fullmatch(colon + port):
        raise ValueError(f'"{whole}" has an invalid port')
    if not _HOST.fullmatch(host):
        raise ValueError(f'"{whole}" has an invalid host')
    return unquote_to_bytes(host).decode(errors="replace") if "%" in host else host
