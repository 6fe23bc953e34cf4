"""The string formats of `format.named("...")` and `format.dns1123Label()`.

Each check returns what is wrong with a text, nothing if it is right. The sentences are ours; upstream's differ.
Source: apiserver, pkg/cel/library/format.go; apimachinery, pkg/util/validation; kube-openapi, pkg/validation/strfmt.
"""

import base64
import binascii
import re
from collections.abc import Callable
from datetime import date

from broker.allocation.cel.network import is_url

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_1123_LABEL = re.compile(_LABEL)
_DNS_1123_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DNS_1035_LABEL = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
_NAME_PART = re.compile("([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_UUID = re.compile("[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]+)?(Z|z|[+-][0-9]{2}:[0-9]{2})"
)

Check = Callable[[str], list[str]]


def _named(pattern: re.Pattern[str], what: str, max_length: int, prefix: bool = False) -> Check:
    def check(text: str) -> list[str]:
        errors = []
        if len(text) > max_length:
            errors.append(f"must be no more than {max_length} characters")
        # What follows a prefix may be anything, so the dash at its end is as good as a letter.
        tested = text[:-1] + "a" if prefix and len(text) > 1 and text.endswith("-") else text
        if not pattern.fullmatch(tested):
            errors.append(f"must be {what}")
        return errors

    return check


def _qualified_name(text: str) -> list[str]:
    prefix, slash, name = text.rpartition("/")
    if "/" in prefix:
        return ["must be a name with at most one prefix and slash"]
    errors = _SUBDOMAIN(prefix) if slash else []
    return errors + _LABEL_PART(name)


def _label_value(text: str) -> list[str]:
    return _LABEL_PART(text) if text else []


def _uri(text: str) -> list[str]:
    return [] if is_url(text) else ["must be an absolute URI or an absolute path"]


def _uuid(text: str) -> list[str]:
    return [] if _UUID.fullmatch(text) else ["does not match the UUID format"]


def _byte(text: str) -> list[str]:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ["invalid base64"]
    return [] if text else ["invalid base64"]


def _date(text: str) -> list[str]:
    try:
        if _DATE.fullmatch(text):
            date.fromisoformat(text)
            return []
    except ValueError:
        pass
    return ["invalid date"]


def _date_time(text: str) -> list[str]:
    match = _DATE_TIME.fullmatch(text)
    if match and not _date(match[1]) and int(match[2]) < 24 and int(match[3]) < 60 and int(match[4]) < 60:
        return []
    return ["invalid datetime"]


_DNS_LABEL_RULE = "lower case letters, digits and '-', and begin and end with a letter or digit"
_SUBDOMAIN = _named(_DNS_1123_SUBDOMAIN, f"labels joined by '.', each of {_DNS_LABEL_RULE}", 253)
_LABEL_PART = _named(
    _NAME_PART, "letters, digits, '-', '_' and '.', and begin and end with a letter or digit; not empty", 63
)

NAMED_FORMATS: dict[str, Check] = {
    "dns1123Label": _named(_DNS_1123_LABEL, _DNS_LABEL_RULE, 63),
    "dns1123Subdomain": _SUBDOMAIN,
    "dns1035Label": _named(_DNS_1035_LABEL, f"{_DNS_LABEL_RULE}; no digit at its begin", 63),
    "qualifiedName": _qualified_name,
    "dns1123LabelPrefix": _named(_DNS_1123_LABEL, _DNS_LABEL_RULE, 63, prefix=True),
    "dns1123SubdomainPrefix": _named(_DNS_1123_SUBDOMAIN, f"labels of {_DNS_LABEL_RULE}", 253, prefix=True),
    "dns1035LabelPrefix": _named(_DNS_1035_LABEL, f"{_DNS_LABEL_RULE}; no digit at its begin", 63, prefix=True),
    "labelValue": _label_value,
    "uri": _uri,
    "uuid": _uuid,
    "byte": _byte,
    "date": _date,
    "datetime": _date_time,
}
