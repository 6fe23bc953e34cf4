"""Manifests from files and directories, each object with its place.

What cannot be read is an error beside the rest, never the end of it: a broken document spoils itself alone, and objects
that do not concern us are counted and passed over. An object is decoded only when `Document.decode` is asked to.
"""

import gc
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from yaml.nodes import Node

from schemas.errors import DecodeError, FieldError, ManifestError
from schemas.manifests import yaml_text
from schemas.manifests.yaml_text import YamlTextError
from schemas.resource import Resource
from schemas.resource.decode import decode_object, is_read
from schemas.resource.versions import path_as_written

_SUFFIXES = (".yaml", ".yml", ".json")
# A line that begins so can only be a marker in YAML, even inside of quotes and blocks of text.
_MARKER = re.compile(r"^(?:---|\.\.\.)(?=\s|$)", re.MULTILINE)
_NO_CONTENT = re.compile(r"(?:\s*(?:[#%].*)?\n)*\s*(?:[#%].*)?")


class _Source:
    """The text of one document and where it stands.

    number: of the document in its file, from 1.
    first_line: how many lines of the file come before the text.
    """

    def __init__(self, path: str, number: int, first_line: int, text: str) -> None:
        self.path = path
        self.number = number
        self.first_line = first_line
        self.text = text

    @cached_property
    def _root(self) -> Node | None:
        # Only errors need places, so the nodes are not kept from reading but composed again.
        try:
            return yaml_text.compose(self.text)
        except YamlTextError:
            return None  # JSON may hold what YAML does not allow, like tabs.

    def locate(self, path: str) -> tuple[int, int]:
        line, column = yaml_text.locate(self._root, path) if self._root else (1, 1)
        return self.first_line + line, column

    def error(self, message: str, line: int, column: int) -> ManifestError:
        return ManifestError(self.path, self.number, self.first_line + line, column, message)


class Document:
    """One object of a manifest.

    raw: the object as builtins; do not change it.
    """

    def __init__(self, source: _Source, raw: dict[str, Any], prefix: str) -> None:
        self._source = source
        self._prefix = prefix  # the path of the object in its document: "", or "items[3]" in a list
        self.raw = raw

    @property
    def path(self) -> str:
        """The file."""
        return self._source.path

    @property
    def number(self) -> int:
        """The document's number in its file, from 1."""
        return self._source.number

    @property
    def line(self) -> int:
        """The line of the file where the object begins, from 1."""
        return self.locate("")[0]

    def locate(self, field_path: str) -> tuple[int, int]:
        """Line and column of a field, or of the last thing on the way to it that is there; both from 1.

        field_path: in the words of the manifest, like `spec.devices.requests[0].exactly.count`.
        """
        return self._source.locate(f"{self._prefix}.{field_path}")

    def decode(self) -> Resource:
        """The object.

        Raises: ManifestError.
        """
        try:
            return decode_object(self.raw)
        except DecodeError as error:
            raise self._placed(error.error.path, error.error.message) from error

    def error(self, field_error: FieldError) -> ManifestError:
        """An error of the decoded object, e.g. from validating it, with its place in the file."""
        return self._placed(path_as_written(self.raw, field_error.path), field_error.message)

    def _placed(self, path: str, message: str) -> ManifestError:
        line, column = self.locate(path)
        return ManifestError(self.path, self.number, line, column, message, field=path)


class ManifestSet(msgspec.Struct, frozen=True):
    """What files hold.

    documents: in the order of the files, and in each as written; lists are unpacked.
    errors: one for each file, document or list entry that cannot be used.
    skipped: how many objects of which kind do not concern us.
    """

    documents: list[Document]
    errors: list[ManifestError]
    skipped: dict[str, int]


def read_manifests(paths: Iterable[str | Path]) -> ManifestSet:
    """Read files, and directories with all that is below them, names that begin with "." apart.

    Directories are read in the order of names; only *.yaml, *.yml and *.json count there.
    """
    return _sorted_out(item for path in paths for file in _files(Path(path)) for item in _read(file))


def parse_manifests(text: str, path: str) -> ManifestSet:
    """Read text as if it stood in a file of this name; JSON if the name ends so."""
    return _sorted_out(_objects(text, path))


def _read(file: Path) -> Iterable[Document | ManifestError | str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return [ManifestError(str(file), 0, 0, 0, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        return [ManifestError(str(file), 0, line, column, "not text in UTF-8")]
    return _objects(text, str(file))


def _sorted_out(found: Iterable[Document | ManifestError | str]) -> ManifestSet:
    documents: list[Document] = []
    errors: list[ManifestError] = []
    skipped: Counter[str] = Counter()
    with _rare_garbage_collection():
        for item in found:
            if isinstance(item, Document):
                documents.append(item)
            elif isinstance(item, ManifestError):
                errors.append(item)
            else:
                skipped[item] += 1
    return ManifestSet(documents, errors, dict(sorted(skipped.items())))


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    # Reading makes millions of objects and not one cycle. At the usual pace the collector takes two thirds of the time.
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if file.suffix in _SUFFIXES and not file.is_dir()]
    visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    return sorted(visible, key=lambda file: file.parts)


def _objects(text: str, path: str) -> Iterator[Document | ManifestError | str]:
    """Documents, errors, and the kinds of objects that do not concern us."""
    is_json = path.endswith(".json")
    for source in [_Source(path, 1, 0, text)] if is_json else _split(text, path):
        try:
            raw = _load_json(source.text) if is_json else yaml_text.load(source.text)
        except YamlTextError as error:
            yield source.error(error.message, error.line, error.column)
        else:
            if raw is not None:
                yield from _unpacked(raw, source, "")


def _split(text: str, path: str) -> Iterator[_Source]:
    starts = [0, *(match.start() for match in _MARKER.finditer(text))]
    number = first_line = 0
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        part = text[start:end]
        is_document = part.startswith("---") or not _NO_CONTENT.fullmatch(part.removeprefix("..."))
        if is_document:
            number += 1
            # The end of the document before is not part of this one; spaces keep the columns.
            yield _Source(path, number, first_line, "   " + part[3:] if part.startswith("...") else part)
        first_line += part.count("\n")


def _load_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise _RepeatedKeyError
        return result

    try:
        return json.loads(text, object_pairs_hook=unique)
    except _RepeatedKeyError:
        return yaml_text.load(text)  # refuses it as well, and knows the place
    except json.JSONDecodeError as error:
        raise YamlTextError(f"not JSON: {error.msg}", error.lineno, error.colno) from error
    except RecursionError:
        raise YamlTextError("nested too deeply", 1, 1) from None


class _RepeatedKeyError(Exception):
    pass


def _unpacked(raw: Any, source: _Source, prefix: str) -> Iterator[Document | ManifestError | str]:
    problem = _problem(raw)
    if problem is not None:
        yield Document(source, raw if isinstance(raw, dict) else {}, prefix).error(problem)
        return
    api_version, kind = raw["apiVersion"], raw["kind"]
    if kind.endswith("List") and "items" in raw:
        for index, item in enumerate(raw["items"] or ()):
            if isinstance(item, dict) and kind != "List":  # entries of a typed list need not repeat what they are
                item = {"apiVersion": api_version, "kind": kind.removesuffix("List"), **item}
            yield from _unpacked(item, source, f"{prefix}.items[{index}]".lstrip("."))
    elif is_read(api_version, kind):
        yield Document(source, raw, prefix)
    else:
        yield kind


def _problem(raw: Any) -> FieldError | None:
    if not isinstance(raw, dict):
        return FieldError("", "expected an object with apiVersion and kind")
    for name in ("apiVersion", "kind"):
        if not isinstance(raw.get(name), str):
            return FieldError(name, "expected text, as every Kubernetes object has it here")
    if raw["kind"].endswith("List") and not isinstance(raw.get("items") or [], list):
        return FieldError("items", "expected a list")
    return None
