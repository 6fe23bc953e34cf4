"""What can be wrong with input: which field, which object, which place of which file.

FieldError is a value, because checks collect many; the exceptions wrap the one that stopped a reader.
"""

from typing import Any

import msgspec

# What msgspec raises for bytes from elsewhere: no JSON or another form, text that is not UTF-8, nested too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class FieldError(msgspec.Struct, frozen=True):
    """One field that cannot be used.

    path: in the words of the input, e.g. `spec.devices.requests[0].exactly.count`; "" is the object itself.
    message: what is wrong and what is expected, as the end of a sentence that begins with the path.
    value: what was found, where it helps to see it apart from the message.
    """

    path: str
    message: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class DecodeError(ValueError):
    """An object whose form is not the API's.

    kind, namespace, name: "" as far as they are unknown.
    error: the first field that could not be read.
    """

    def __init__(self, error: FieldError, *, kind: str = "", namespace: str = "", name: str = "") -> None:
        super().__init__(error, kind, namespace, name)
        self.error = error
        self.kind = kind
        self.namespace = namespace
        self.name = name

    def __str__(self) -> str:
        where = "/".join(part for part in (self.namespace, self.name) if part)
        prefix = " ".join(part for part in (self.kind, where) if part)
        return f"{prefix}: {self.error}" if prefix else str(self.error)


class ManifestError(ValueError):
    """A place in a manifest that cannot be used.

    document: counts from 1 in its file; 0 where the file as a whole could not be read.
    line, column: count from 1; 0 where unknown.
    field: the path inside the object, "" for the document itself.
    """

    def __init__(self, path: str, document: int, line: int, column: int, message: str, *, field: str = "") -> None:
        super().__init__(path, document, line, column, message, field)
        self.path = path
        self.document = document
        self.line = line
        self.column = column
        self.message = message
        self.field = field

    def __str__(self) -> str:
        place = self.path
        if self.line:
            place += f":{self.line}:{self.column}"
        if self.document:
            place += f" (document {self.document})"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"
