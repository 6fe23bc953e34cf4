"""A file that only grows, and survives the loss of its process or its machine at any moment.

One line is one batch: it is there as a whole or not at all. What a batch says is the business of the caller. From time
to time the caller gives a new beginning, which replaces the file at once.
"""

import fcntl
import os
import zlib
from pathlib import Path

import msgspec

_FORMAT = b"dragoman-journal/1"
_LINES_OF_BEGINNING = 2  # the format and one batch, which are complete before the file has its name


class JournalError(Exception):
    """The journal cannot be used, or no longer: the process must end. What was appended before is safe."""


class Journal:
    """Batches on disk; each is JSON. Only one process can have a journal open."""

    def __init__(self, path: Path) -> None:
        """Raises: JournalError if another process has it open, or if the directory cannot be written."""
        self._path = path
        self._size = self._first_size = 0
        self._file: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file of its own: the journal itself is another file after each new beginning.
            self._lock: int | None = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"{path.parent}: cannot keep data here: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise JournalError(
                f"{path.parent}: another process keeps its data here; give each its own directory"
            ) from error

    def read(self) -> list[bytes]:
        """All batches, oldest first, without one whose writing was cut off.

        Raises: JournalError if another batch is damaged. Then what was promised is lost, and only a person may decide
        to go on without it.
        """
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be read: {error.strerror}") from error
        # After the last newline stands nothing, or the beginning of a batch that nobody was told of. Even with its
        # newline the last one may be such a batch, if its blocks reached the disk in another order.
        batches = [_unsealed(line) for line in lines[:-1]]
        if len(batches) > _LINES_OF_BEGINNING and batches[-1] is None:
            batches.pop()
        good = [batch for batch in batches if batch is not None]
        if len(good) < len(batches) or len(good) < _LINES_OF_BEGINNING or good[0] != _FORMAT:
            raise JournalError(
                f"{self._path}: damaged, or written by another release; restore the directory from a backup, or remove "
                "it: then every object gets a new UID"
            )
        return good[1:]

    def begin(self, batch: object) -> None:
        """Replace everything by one batch that says it all. Whoever reads later finds either the old or the new file.

        Raises: JournalError.
        """
        fresh = self._path.with_suffix(".new")
        content = _sealed(_FORMAT) + _sealed(msgspec.json.encode(batch))
        try:
            file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if self._file is not None:
                os.close(self._file)
            self._file = file
            _write(file, content)
            fresh.rename(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._size = self._first_size = len(content)

    def append(self, batch: object) -> None:
        """Add a batch; it is on disk when this returns.

        Raises: JournalError; then the batch may be there or not, and nothing more may be appended.
        """
        assert self._file is not None, "begin comes first"
        line = _sealed(msgspec.json.encode(batch))
        try:
            _write(self._file, line)
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._size += len(line)

    @property
    def is_begun(self) -> bool:
        """Whether batches can be appended."""
        return self._file is not None

    @property
    def is_long(self) -> bool:
        """Whether a new beginning would be worth its cost: more was appended than the last one wrote, and 1 MiB."""
        return self._size - self._first_size > max(self._first_size, 1024 * 1024)

    def close(self) -> None:
        """Let another process have it. This one must not write any more."""
        descriptors, self._file, self._lock = (self._file, self._lock), None, None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)


def _sealed(batch: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(batch), batch)


def _unsealed(line: bytes) -> bytes | None:
    checksum, space, batch = line[:8], line[8:9], line[9:]
    return batch if space == b" " and checksum == b"%08x" % zlib.crc32(batch) else None
