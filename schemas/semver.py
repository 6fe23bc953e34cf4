"""Versions as the semver library of Kubernetes' CEL has them.

Strict semver 2.0.0, or with `normalize` the tolerant form. Order and equality ignore build metadata, as upstream's do.
Source: apiserver, pkg/cel/library/semverlib.go, which rests on github.com/blang/semver.
"""

import re
from typing import Any

import msgspec

_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRERELEASE = rf"(?:{_NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_BUILD = r"[0-9a-zA-Z-]+"
SEMVER_PATTERN = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_PRERELEASE}(?:\.{_PRERELEASE})*))?(?:\+({_BUILD}(?:\.{_BUILD})*))?"
)
_MAX_NUMBER = 2**64 - 1


class SemverError(ValueError):
    """Text that is no semantic version; the message says what is expected."""


class Semver(msgspec.Struct, frozen=True, eq=False):
    """A semantic version.

    prerelease: its identifiers, numeric ones as numbers; none means the release itself, which comes after them all.
    """

    major: int
    minor: int
    patch: int
    prerelease: tuple[int | str, ...] = ()
    build: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, normalize: bool = False) -> "Semver":
        """Read a version.

        normalize: a leading "v" is dropped, leading zeros too, and missing minor and patch numbers are 0.
        Raises: SemverError.
        """
        match = SEMVER_PATTERN.fullmatch(_normalized(text) if normalize else text)
        if match is None:
            raise SemverError(f'expected a version MAJOR.MINOR.PATCH as semver.org defines it, found "{text[:64]}"')
        prerelease = tuple(int(part) if part.isdigit() else part for part in match[4].split(".")) if match[4] else ()
        numbers = [int(match[1]), int(match[2]), int(match[3]), *(part for part in prerelease if isinstance(part, int))]
        if max(numbers) > _MAX_NUMBER:
            raise SemverError(f'expected numbers of at most 64 bits, found "{text[:64]}"')
        build = tuple(match[5].split(".")) if match[5] else ()
        return cls(numbers[0], numbers[1], numbers[2], prerelease, build)

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        if self.prerelease:
            text += "-" + ".".join(map(str, self.prerelease))
        return text + "+" + ".".join(self.build) if self.build else text

    def _key(self) -> tuple[Any, ...]:
        # Numeric identifiers come before alphanumeric ones, and a release after all of its prereleases.
        identifiers = tuple((0, part, "") if isinstance(part, int) else (1, 0, part) for part in self.prerelease)
        return (self.major, self.minor, self.patch, not self.prerelease, identifiers)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Semver) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __lt__(self, other: "Semver") -> bool:
        return self._key() < other._key()

    def __le__(self, other: "Semver") -> bool:
        return self._key() <= other._key()

    def __gt__(self, other: "Semver") -> bool:
        return self._key() > other._key()

    def __ge__(self, other: "Semver") -> bool:
        return self._key() >= other._key()


def _normalized(text: str) -> str:
    parts = text.removeprefix("v").split(".", 2)
    for index, part in enumerate(parts):
        if len(part) > 1:
            stripped = part.lstrip("0")
            parts[index] = stripped if stripped[:1].isdigit() else "0" + stripped
    if len(parts) < 3 and not set(parts[-1]) & set("+-"):
        parts += ["0"] * (3 - len(parts))
    return ".".join(parts)
