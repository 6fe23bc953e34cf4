"""The formats of names in Kubernetes, each as a function that says what is wrong, or None.

Messages end a sentence that begins with the field's path. Source: apimachinery, pkg/util/validation.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_interface

from schemas.resource.limits import DRIVER_NAME_MAX, IDENTIFIER_MAX, POOL_NAME_MAX

Check = Callable[[str], str | None]

_LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_QUALIFIED = re.compile("[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_C_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_UUID = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_REASON = re.compile("[A-Za-z](?:[A-Za-z0-9_,:]*[A-Za-z0-9_])?")


def byte_length(text: str) -> int:
    """What the API counts where it limits the length of text."""
    return len(text) if text.isascii() else len(text.encode())


@lru_cache(maxsize=4096)
def dns_label(text: str) -> str | None:
    """Device, request and counter names."""
    if len(text) <= 63 and _DNS_LABEL.fullmatch(text):
        return None
    return f'must be a DNS label (lowercase letters, digits and "-", at most 63), found "{_short(text)}"'


@lru_cache(maxsize=4096)
def dns_subdomain(text: str) -> str | None:
    """Names of most objects."""
    if len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text):
        return None
    return f'must be DNS labels (lowercase letters, digits and "-") joined by ".", at most 253, found "{_short(text)}"'


def driver_name(text: str) -> str | None:
    """Drivers, and the domain in front of an attribute's name; upper case is allowed."""
    if len(text) > DRIVER_NAME_MAX:
        return f'must have at most {DRIVER_NAME_MAX} characters, found {len(text)} in "{_short(text)}"'
    return dns_subdomain(text.lower())


def pool_name(text: str) -> str | None:
    """DNS subdomains joined by "/"."""
    if len(text) > POOL_NAME_MAX:
        return f"must have at most {POOL_NAME_MAX} characters, found {len(text)}"
    return next(filter(None, map(dns_subdomain, text.split("/"))), None)


@lru_cache(maxsize=4096)
def qualified_name(text: str) -> str | None:
    """Attributes and capacities: "name" or "domain/name"."""
    if text.count("/") > 1:
        return None  # A gap of the API server's; nothing can match such a name, so it does no harm.
    domain, slash, identifier = text.rpartition("/")
    if slash and (problem := driver_name(domain)):
        return f"the domain {problem}"
    if len(identifier) > IDENTIFIER_MAX or not _C_IDENTIFIER.fullmatch(identifier):
        return (
            f'must be a name of letters, digits and "_" that does not begin with a digit, at most {IDENTIFIER_MAX}, '
            f'with a "domain/" before it if it is not the driver\'s own; found "{_short(text)}"'
        )
    return None


def fully_qualified_name(text: str) -> str | None:
    """Attributes where no driver is known: "domain/name"."""
    if "/" not in text:
        return f'must be "domain/name", found "{_short(text)}"; the domain is the driver\'s name for its own attributes'
    return qualified_name(text)


@lru_cache(maxsize=4096)
def label_key(text: str) -> str | None:
    """Keys of labels, taints and node selectors: "name" or "domain/name"."""
    domain, slash, name = text.rpartition("/")
    if slash and (problem := dns_subdomain(domain)):
        return f"the domain {problem}"
    if len(name) <= 63 and _QUALIFIED.fullmatch(name):
        return None
    return (
        'must be a name of letters, digits, "-", "_" and ".", at most 63, that begins and ends with a letter or digit, '
        f'optionally after "domain/"; found "{_short(text)}"'
    )


@lru_cache(maxsize=4096)
def label_value(text: str) -> str | None:
    """Values of labels, taints and node selectors; may be empty."""
    if not text or (len(text) <= 63 and _QUALIFIED.fullmatch(text)):
        return None
    return (
        'must be empty, or letters, digits, "-", "_" and ".", at most 63, beginning and ending with a letter or digit; '
        f'found "{_short(text)}"'
    )


def extended_resource_name(text: str) -> str | None:
    """A resource outside of kubernetes.io that a DeviceClass stands for."""
    # The name is also used after "requests." in quotas, where it must still be a qualified name.
    if "/" in text and "kubernetes.io/" not in text and not text.startswith("requests."):
        return label_key(f"requests.{text}")
    return f'must be "domain/name" outside of kubernetes.io and without "requests." before it, found "{_short(text)}"'


def uuid(text: str) -> str | None:
    """UIDs, in the form that has one spelling only."""
    return None if _UUID.fullmatch(text) else f'must be a UUID in lower case, found "{_short(text)}"'


def condition_reason(text: str) -> str | None:
    """Why a condition has its status."""
    if len(text) <= 1024 and _REASON.fullmatch(text):
        return None
    return f'must be a word of letters, digits, "_", "," and ":", at most 1024, found "{_short(text)}"'


def interface_address(text: str) -> str | None:
    """An IP address with the length of its network's prefix, in the canonical form."""
    try:
        canonical = str(ip_interface(text))
    except ValueError:
        return f'must be an address like 10.9.8.7/24 or 2001:db8::1/64, found "{_short(text)}"'
    return None if text == canonical else f'must be in the canonical form "{canonical}", found "{_short(text)}"'


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
