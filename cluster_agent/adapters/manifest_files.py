"""Which manifest files there are, and the objects in them, as they are handed to the store.

Reading and parsing only; what becomes of the objects is in `manifest_cluster`. As it reads them it marks every
DeviceClass as brokered and every claim as one to be allocated at once, where they do not say otherwise, so that plain
manifests need no marks of ours.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster_agent.adapters.object_store import DELETE_PROTECTION, ObjectKey, key_of
from cluster_agent.ports import ApiObject
from schemas.errors import FieldError, ManifestError
from schemas.manifests import Document, parse_manifests
from schemas.resource import DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice
from schemas.resource.untyped import as_dict, as_list
from schemas.resource.validate import validate_claim, validate_class, validate_taint_rule, validate_template
from schemas.resource.validate_slice import validate_slice
from schemas.resource.versions import to_v1

BROKERED = "dragoman.dev/brokered"
ALLOCATE = "dragoman.dev/allocate"
HELD = "dragoman.dev/held"

_SUFFIXES = (".yaml", ".yml", ".json")
_KINDS = {
    "ResourceSlice": "slice",
    "DeviceClass": "class",
    "ResourceClaim": "claim",
    "ResourceClaimTemplate": "template",
    "Node": "node",
    "DeviceTaintRule": "taintrule",
    "Pod": "pod",
    "Namespace": "namespace",
}


class Content(msgspec.Struct, frozen=True):
    """A file as it was read. data: None where it could not be, for the reason in `error`."""

    source: str
    digest: str
    data: bytes | None
    error: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """An object that should exist.

    object: in the form of v1, marked.
    error: why it cannot be read, or would be refused; "" if it is right.
    source: the file, as it is called below its directory: the same wherever that is mounted.
    digest: of the object.
    document: where it is written; None for one that was made for a pod.
    """

    key: ObjectKey
    object: ApiObject
    error: str
    source: str
    digest: str
    document: Document | None = None

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.document.path}:{self.document.line}" if self.document else self.source

    def problem(self, message: str, field: str = "") -> ManifestError:
        """Something that is wrong with it."""
        if self.document:
            return self.document.error(FieldError(field, message))
        return ManifestError(self.source, 0, 0, 0, message, field=field)


class ManifestFile(msgspec.Struct, frozen=True):
    """What a file says.

    manifests: of what could be parsed.
    is_broken: something in it could not be parsed. Any object that it had before may still be in there.
    """

    source: str
    digest: str
    manifests: list[Manifest]
    problems: list[ManifestError]
    skipped: dict[str, int]
    is_broken: bool


class ManifestFiles:
    """Directories of manifests and single files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises: ManifestError for a path that is not there."""
        for path in paths:
            if not path.exists():
                raise ManifestError(str(path), 0, 0, 0, "there is no such file or directory")
        self._paths = list(paths)
        self.directories = [path for path in paths if path.is_dir()]
        self.parents = sorted({path.parent for path in paths if not path.is_dir()})

    def fetch(self) -> dict[str, Content]:
        """Read every file, by its path: directories with all that is below them in the order of names, without what is
        hidden.

        Raises: ManifestError for a directory that cannot be read: nothing is known of the files in it.
        """
        contents: dict[str, Content] = {}
        for path in self._paths:
            if path not in self.directories:
                self._fetch_file(path, path.name, contents)
                continue
            for file in _files_below(path):
                self._fetch_file(file, file.relative_to(path).as_posix(), contents)
        return contents

    def in_order(self, paths: Iterable[str]) -> list[str]:
        """Paths of files in the order in which `fetch` has them."""

        def place(text: str) -> tuple[int, tuple[str, ...]]:
            path = Path(text)
            roots = (number for number, root in enumerate(self._paths) if path == root or root in path.parents)
            return next(roots, 0), path.parts

        return sorted(paths, key=place)

    def _fetch_file(self, path: Path, source: str, contents: dict[str, Content]) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            contents[str(path)] = Content(source, f"unreadable: {error.strerror}", None, str(error.strerror))
        else:
            contents[str(path)] = Content(source, hashlib.blake2b(data, digest_size=16).hexdigest(), data)

    def parse(self, contents: dict[str, Content], known: dict[str, ManifestFile]) -> dict[str, ManifestFile]:
        """What the files say, by path. known: what they said before; taken over for files that did not change."""
        return {
            path: file if (file := known.get(path)) and file.digest == content.digest else _parsed(path, content)
            for path, content in contents.items()
        }


def digest_of(obj: Any) -> str:
    """The same for equal objects."""
    return hashlib.blake2b(msgspec.json.encode(obj, order="deterministic"), digest_size=16).hexdigest()


def marked(kind: str, obj: ApiObject) -> ApiObject:
    """The object with our mark, unless it has one, and without finalizers that nobody here would ever take away."""
    metadata = dict(obj["metadata"])
    own = (DELETE_PROTECTION, HELD) if kind == "claim" else ()
    if "finalizers" in metadata:
        metadata["finalizers"] = [name for name in as_list(metadata["finalizers"]) if name in own]
    mark = {"class": ("labels", BROKERED, "true"), "claim": ("annotations", ALLOCATE, "Immediate")}.get(kind)
    if mark is not None:
        where, name, value = mark
        if isinstance(metadata.get(where) or {}, dict):
            metadata[where] = {name: value, **(metadata.get(where) or {})}
    return {**obj, "metadata": metadata}


def _files_below(directory: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise ManifestError(str(error.filename), 0, 0, 0, f"cannot be read: {error.strerror}") from error

    found: list[Path] = []
    for parent, directories, names in os.walk(directory, onerror=refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.endswith(_SUFFIXES) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.parts)


def _parsed(path: str, content: Content) -> ManifestFile:
    manifests: list[Manifest] = []
    broken: list[ManifestError] = []
    refused: list[ManifestError] = []
    skipped: dict[str, int] = {}
    try:
        if content.data is None:
            raise ManifestError(path, 0, 0, 0, f"cannot be read: {content.error}")
        found = parse_manifests(content.data.decode("utf-8-sig"), path)
    except ManifestError as error:
        broken.append(error)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        broken.append(ManifestError(path, 0, line, 1, "not text in UTF-8"))
    else:
        broken += found.errors
        skipped = found.skipped
        for document in found.documents:
            if not as_dict(document.raw.get("metadata")).get("name"):
                broken.append(document.error(FieldError("metadata.name", "every object needs a name here")))
                continue
            manifest = _manifest(document, content.source)
            manifests.append(manifest)
            if manifest.key.kind == "template" and manifest.error:
                refused += _problems(document)  # nobody else would say it: templates are not delivered
    return ManifestFile(content.source, content.digest, manifests, broken + refused, skipped, bool(broken))


def _manifest(document: Document, source: str) -> Manifest:
    kind = _KINDS[document.raw["kind"]]
    error = "; ".join(str(problem) for problem in _problems(document))
    obj = marked(kind, to_v1(document.raw))
    return Manifest(key_of(kind, obj), obj, error, source, digest_of(obj), document)


def _problems(document: Document) -> list[ManifestError]:
    """What an API server would refuse the object for."""
    try:
        obj = document.decode()
    except ManifestError as error:
        return [error]
    problems: list[FieldError] = []
    match obj:
        case ResourceClaim():
            problems = validate_claim(obj)
        case DeviceClass():
            problems = validate_class(obj)
        case ResourceSlice():
            problems = validate_slice(obj)
        case DeviceTaintRule():
            problems = validate_taint_rule(obj)
        case ResourceClaimTemplate():
            problems = validate_template(obj)
    return [document.error(problem) for problem in problems]
