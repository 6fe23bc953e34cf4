"""A ledger segment as a file: JSON lines, compressed (zstd), every byte of every entry, with a checksum at the end.

    zstdcat DRA_LEDGER_main_0.jsonl.zst | jq 'select(.payload) | .payload | fromjson'

The first line says which segment it is, the last one how many entries there are and the SHA-256 of all lines before it.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import zstandard

from broker.adapters.errors import ArchiveError
from schemas.errors import UNREADABLE
from schemas.wire.bus import StoredMessage

FORMAT = "dragoman.ledger.v1"
LINE_BYTES_MAX = 16 * 1024 * 1024  # a message has at most some; a file that is no archive may have no lines at all
BATCH_LINES = 1_000


class ArchiveHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Which segment a file holds."""

    archive: str = FORMAT
    stream: str
    shard: str
    segment: int


class _Line(msgspec.Struct, omit_defaults=True):
    """An entry. base64: its payload, where that is not text (it was damaged)."""

    sequence: int
    subject: str
    time_ms: int
    headers: dict[str, str]
    payload: str = ""
    base64: bytes = b""


class _End(msgspec.Struct):
    entries: int
    sha256: str


class ArchiveWriter:
    """Writes a segment to a new file, which is there as a whole or not at all. A context; count: entries so far."""

    def __init__(self, path: Path, header: ArchiveHeader) -> None:
        self.path = path
        self.count = 0
        self._header = header
        self._part = path.with_name(f"{path.name}.part")
        self._digest = hashlib.sha256()

    def __enter__(self) -> "ArchiveWriter":
        """Raises: ArchiveError if the file cannot be written, or is there already."""
        if self.path.exists():
            raise ArchiveError(self.path, "it is there already: remove it, or choose another name")
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise ArchiveError(self.path, f"it cannot be written: {error}") from error
        self._packed = zstandard.ZstdCompressor(level=3).stream_writer(self._file, closefd=False)
        self._write(msgspec.json.encode(self._header))
        return self

    def add(self, batch: Iterable[StoredMessage]) -> None:
        """The next entries. Raises: ArchiveError."""
        for message in batch:
            self._write(msgspec.json.encode(_line(message)))
            self.count += 1

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                self._write(msgspec.json.encode(_End(self.count, self._digest.hexdigest())))
                self._packed.flush(zstandard.FLUSH_FRAME)
                self._file.flush()
                os.fsync(self._file.fileno())
                self._part.rename(self.path)
        except OSError as error:
            raise ArchiveError(self.path, f"it cannot be written: {error}") from error
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        self._digest.update(line + b"\n")
        try:
            self._packed.write(line + b"\n")
        except OSError as error:
            raise ArchiveError(self.path, f"it cannot be written: {error}") from error


class Archive:
    """A file of a segment; `batches` reads it from its beginning to its end, once."""

    def __init__(self, path: Path) -> None:
        """Raises: ArchiveError if it is none."""
        self.path = path
        self._digest = hashlib.sha256()
        self._lines = _lines_of(path)
        try:
            self.header = msgspec.json.decode(self._next() or b"", type=ArchiveHeader)
        except UNREADABLE as error:
            raise ArchiveError(path, f"it does not begin as an archive of a ledger segment: {error}") from error
        if self.header.archive != FORMAT:
            raise ArchiveError(path, f"it has format {self.header.archive!r}, and this build reads {FORMAT}")

    def batches(self) -> Iterator[list[StoredMessage]]:
        """The entries. Raises: ArchiveError where the file is damaged, at its end at the latest."""
        batch: list[StoredMessage] = []
        count = 0
        while True:
            before = self._digest.copy()
            line = self._next()
            if line is None:
                raise ArchiveError(self.path, f"it is cut off after {count} entries")
            try:
                if line.startswith(b'{"entries"'):
                    end = msgspec.json.decode(line, type=_End)
                    break
                entry = msgspec.json.decode(line, type=_Line)
            except UNREADABLE as error:
                raise ArchiveError(self.path, f"the line after {count} entries is damaged: {error}") from error
            count += 1
            payload = entry.base64 or entry.payload.encode()
            batch.append(StoredMessage(entry.subject, payload, entry.headers, entry.sequence, entry.time_ms))
            if len(batch) == BATCH_LINES:
                yield batch
                batch = []
        if batch:
            yield batch
        if (end.entries, end.sha256) != (count, before.hexdigest()):
            raise ArchiveError(self.path, f"its checksum is wrong: it has {count} entries, {end.entries} were written")

    def _next(self) -> bytes | None:
        try:
            line = next(self._lines, None)
        except (OSError, zstandard.ZstdError) as error:
            raise ArchiveError(self.path, f"it cannot be read: {error}") from error
        if line is not None:
            self._digest.update(line)
        return line


def _lines_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
        lines = io.BufferedReader(unpacked, 1 << 20)
        while line := lines.readline(LINE_BYTES_MAX):
            yield line


def _line(message: StoredMessage) -> _Line:
    line = _Line(message.stream_sequence, message.subject, message.time_ms, dict(message.headers))
    try:
        line.payload = message.payload.decode()
    except UnicodeDecodeError:
        line.base64 = message.payload
    return line
