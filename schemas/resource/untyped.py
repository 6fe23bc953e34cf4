"""Step through an object that nobody has checked: what is not there, or is something else, is empty."""

from typing import Any


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is an object; else, as in manifests that cannot be read, an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def dicts_in(value: Any) -> list[dict[str, Any]]:
    """The objects in a list."""
    return [each for each in as_list(value) if isinstance(each, dict)]


def texts_in(value: Any) -> list[str]:
    """The texts in a list."""
    return [each for each in as_list(value) if isinstance(each, str)]


def as_text(value: Any) -> str:
    """The value if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def allocation_of(claim: Any) -> Any:
    """The status.allocation of a claim, whatever it is; None where it has none."""
    return as_dict(as_dict(claim).get("status")).get("allocation")


def results_of(allocation: Any) -> list[dict[str, Any]]:
    """The results of an allocation."""
    return dicts_in(as_dict(as_dict(allocation).get("devices")).get("results"))
