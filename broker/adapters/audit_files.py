"""Rows of an audit as JSON lines, CSV or Parquet."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import msgspec

from broker.adapters.errors import ExportError

FORMATS = ("jsonl", "csv", "parquet")
Row = Mapping[str, Any]  # texts, integers, booleans, lists of texts, and objects


class RowWriter(Protocol):
    """Takes rows; a context, at whose end all of them are written."""

    def __enter__(self) -> "RowWriter": ...
    def add(self, rows: Iterable[Row]) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def row_writer(form: str, to: BinaryIO, columns: Mapping[str, type]) -> RowWriter:
    """columns: name and type (str, int, bool, list, dict) of each, in order. Raises: ExportError."""
    if form == "parquet":
        return _Parquet(to, columns)
    return _Csv(to, columns) if form == "csv" else _JsonLines(to)


class _Plain:
    def __enter__(self) -> "_Plain":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def add(self, rows: Iterable[Row]) -> None:
        raise NotImplementedError


class _JsonLines(_Plain):
    def __init__(self, to: BinaryIO) -> None:
        self._to = to

    def add(self, rows: Iterable[Row]) -> None:
        self._to.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


class _Csv(_Plain):
    """Lists with spaces between (no name has one), objects as JSON."""

    def __init__(self, to: BinaryIO, columns: Mapping[str, type]) -> None:
        self._to, self._columns = to, columns
        self._write([list(columns)])

    def add(self, rows: Iterable[Row]) -> None:
        self._write([[self._cell(row[name], kind) for name, kind in self._columns.items()] for row in rows])

    def _cell(self, value: Any, kind: type) -> Any:
        if kind is list:
            return " ".join(value)
        if kind is dict:
            return msgspec.json.encode(value).decode() if value else ""
        return str(value).lower() if kind is bool else value

    def _write(self, rows: list[list[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._to.write(text.getvalue().encode())


class _Parquet:
    """Objects as JSON texts."""

    def __init__(self, to: BinaryIO, columns: Mapping[str, type]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ExportError("Parquet needs pyarrow: install dragoman[parquet], or choose jsonl or csv") from error
        self._arrow = pa
        kinds = {
            str: pa.string(),
            int: pa.int64(),
            bool: pa.bool_(),
            list: pa.list_(pa.string()),
            dict: pa.string(),
        }
        self._columns = columns
        self._schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
        self._writer = parquet.ParquetWriter(to, self._schema, compression="zstd")

    def __enter__(self) -> "_Parquet":
        return self

    def add(self, rows: Iterable[Row]) -> None:
        table = [
            {
                name: msgspec.json.encode(row[name]).decode() if kind is dict else row[name]
                for name, kind in self._columns.items()
            }
            for row in rows
        ]
        if table:
            self._writer.write_table(self._arrow.Table.from_pylist(table, self._schema))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is not there yet; after the context it is there as a whole, or, if that has failed, not at all.

    Raises: ExportError.
    """
    if path.exists():
        raise ExportError(f"{path} is there already: remove it, or choose another name")
    part = path.with_name(f"{path.name}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
