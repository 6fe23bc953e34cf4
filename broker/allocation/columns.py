"""Devices by columns: what the devices of one slice have in one place, dictionary-coded.

A slice has at most 128 devices, so a byte each says which of the slice's distinct values a device has. Selectors and
constraints ask about distinct values, and get their answers for all devices of a slice at once, as a bit mask: bit i
stands for device i.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from functools import lru_cache
from weakref import WeakValueDictionary

import msgspec

from broker.allocation.cel.fields import FieldPath
from broker.allocation.cel.values import DeviceValues, device_values, split_name
from schemas.resource import Device, DeviceAttribute, DeviceCapacity

DEVICES_MAX = 128  # in one part of a slice; a byte and a few hundred bits must do for all that is kept of it

# What a device has in one place, so that equal cells mean equal devices there; None: nothing. The value itself for
# a string, else all fields of the DeviceAttribute: 1 and true are equal in Python.
Cell = Hashable
# One value of an attribute: the value itself for a string, else (type, value). A list has several.
Value = str | tuple[str, object]

_FEW_POSITIONS = 8  # then to put large numbers together takes less time than to read one
_FEW_CELLS = 16  # of a column; then it keeps a mask for each
_DIGITS = [bytes(code == each for each in range(256)).translate(bytes.maketrans(b"\0\1", b"01")) for code in range(256)]


class Column:
    """One place of the devices of a slice.

    cells: the distinct ones, in the order in which they first occur.
    codes: for each device the index of its cell.
    """

    __slots__ = ("__weakref__", "_masks", "cells", "codes")

    def __init__(self, cells: tuple[Cell, ...], codes: bytes) -> None:
        self.cells = cells
        self.codes = codes
        self._masks: list[int] | None = None  # for each code its devices, once asked for

    @property
    def has_few_cells(self) -> bool:
        """Then slices that agree in this place have one and the same column."""
        return len(self.cells) <= _FEW_CELLS

    @property
    def everything(self) -> int:
        """All devices."""
        return (1 << len(self.codes)) - 1

    def mask(self, code: int) -> int:
        """The devices with this cell."""
        if self._masks is not None:
            return self._masks[code]
        return _as_mask(self.codes.translate(_DIGITS[code]))

    def mask_of(self, codes: Iterable[int]) -> int:
        """The devices with one of these cells."""
        found = 0
        for code in codes:
            found |= self.mask(code)
        return found

    def without_other_texts(self, texts: frozenset[str]) -> int:
        """The devices whose cell is one of these texts, or no text at all."""
        codes = enumerate(self.cells)
        return self.mask_of(code for code, cell in codes if cell in texts or not isinstance(cell, str))

    def split(self, mask: int) -> Iterable[int]:
        """The devices of the mask as one mask for each cell that occurs among them."""
        if self.has_few_cells:
            if self._masks is None:
                self._masks = [self.mask(code) for code in range(len(self.cells))]
            return [part for each in self._masks if (part := each & mask)]
        by_code: dict[int, int] = {}
        for index in bits(mask):
            by_code[self.codes[index]] = by_code.get(self.codes[index], 0) | 1 << index
        return by_code.values()


def _as_mask(digits: bytes) -> int:
    """The mask for a text of the digits 0 and 1, one for each device."""
    return int(digits[::-1], 2) if digits else 0


def bits(mask: int) -> list[int]:
    """The positions of the bits that are set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def mask_of(positions: Collection[int]) -> int:
    """The number with these bits set."""
    if len(positions) <= _FEW_POSITIONS:
        found = 0
        for each in positions:
            found |= 1 << each
        return found
    digits = bytearray(b"0" * (max(positions) + 1))
    for each in positions:
        digits[-1 - each] = 49  # "1"
    return int(digits, 2)


# Most slices have the same few models, sizes and capacities as others. Here 1 and true would be taken for equal, but no
# place has both (see Cell).
_COLUMNS: WeakValueDictionary[tuple[tuple[Cell, ...], bytes], Column] = WeakValueDictionary()


def column_with(cells: tuple[Cell, ...], codes: bytes) -> Column:
    """The column with these cells and codes; the same one each time where it has few cells."""
    if len(cells) > _FEW_CELLS:
        return Column(cells, codes)
    found = _COLUMNS.get((cells, codes))
    if found is None:
        found = _COLUMNS[cells, codes] = Column(cells, codes)
    return found


def column_of(cells: Iterable[Cell]) -> Column:
    """The column with these cells, one for each device."""
    codes: dict[Cell, int] = {}
    coded = bytes([codes.setdefault(cell, len(codes)) for cell in cells])
    return column_with(tuple(codes), coded)


def joint_column(columns: Sequence[Column]) -> Column:
    """The column whose cells are the tuples of the columns' cells."""
    joint = column_of(zip(*(each.codes for each in columns), strict=True))
    cells = [each.cells for each in columns]
    return column_with(
        tuple(
            tuple(cell[code] for cell, code in zip(cells, codes, strict=True))
            for codes in joint.cells
            if isinstance(codes, tuple)
        ),
        joint.codes,
    )


class SliceColumns:
    """The columns of some devices of one driver. Attributes and capacities are coded at once, what is wider on demand.

    unreadable: devices that fail every selector, because one of their versions or quantities is none.
    """

    __slots__ = ("_attributes", "_capacity", "_devices", "_driver", "_profiles", "_wider", "unreadable")

    def __init__(self, driver: str, devices: Sequence[Device]) -> None:
        self._driver = driver
        self._devices = devices
        self._attributes = {
            name: _attribute_column([each.attributes.get(name) for each in devices])
            for name in dict.fromkeys(name for each in devices for name in each.attributes)
        }
        self._capacity = {
            name: column_of([amount.value if (amount := each.capacity.get(name)) else None for each in devices])
            for name in dict.fromkeys(name for each in devices for name in each.capacity)
        }
        self._wider: dict[FieldPath, Column] = {}
        self._profiles: Column | None = None
        self.unreadable = self._find_unreadable()

    def attribute(self, qualified: str) -> Column:
        """The attribute that a constraint names; one without a domain in the slice belongs to the driver's."""
        found = self._attributes.get(qualified)
        domain, _, name = qualified.partition("/")
        short = self._attributes.get(name) if domain == self._driver else None
        if found is None or short is None:
            return found or short or self._empty()
        both = zip(found.codes, short.codes, strict=True)
        return column_of([found.cells[long] if found.cells[long] is not None else short.cells[at] for long, at in both])

    def of_field(self, field: FieldPath) -> Column:
        """What the devices have at a place that a selector reads."""
        match field.parts:
            case ("driver",):
                return column_with((self._driver,), bytes(len(self._devices)))
            case ("attributes" | "capacity" as kind, domain, name):
                known = self._attributes if kind == "attributes" else self._capacity
                long = known.get(f"{domain}/{name}")
                short = known.get(name) if domain == self._driver else None
                if long is None or short is None:
                    return long or short or self._empty()
        found = self._wider.get(field)
        if found is None:
            found = self._wider[field] = self._widest(field)
        return found

    def reduced(self, device: Device, fields: Iterable[FieldPath]) -> Device:
        """A device that is the same to a selector which reads only these places, and is made ready for it in less time.

        device: one of the columns', and none that is unreadable.
        """
        wanted: set[tuple[str, str]] = set()
        for field in fields:
            match field.parts:
                case ("attributes" | "capacity" as kind, domain, name):
                    wanted |= {(kind, f"{domain}/{name}"), (kind, name if domain == self._driver else "")}
                case ("driver",) | ("allowMultipleAllocations",):
                    pass
                case _:
                    return device
        return Device(
            name=device.name,
            attributes={name: each for name, each in device.attributes.items() if ("attributes", name) in wanted},
            capacity={name: each for name, each in device.capacity.items() if ("capacity", name) in wanted},
            allow_multiple_allocations=device.allow_multiple_allocations,
        )

    def _widest(self, field: FieldPath) -> Column:
        """All that the devices have below a place. What is written in two ways counts as two things: finer is safe."""
        kind, domain = (*field.parts, "", "")[:2]
        if kind == "allowMultipleAllocations":
            return column_of([bool(each.allow_multiple_allocations) for each in self._devices])
        known: dict[tuple[str, str], Column] = {}
        for group, columns in (("attributes", self._attributes), ("capacity", self._capacity)):
            if kind in ("", group):
                known |= {(group, name): column for name, column in columns.items()}
        if domain:
            known = {key: column for key, column in known.items() if split_name(key[1], self._driver)[0] == domain}
        if not kind:
            known["", "allowMultipleAllocations"] = self._widest(FieldPath(("allowMultipleAllocations",)))
        if not known:
            return self._empty()
        if any(f"{self._driver}/{name}" in {other for _, other in known} for _, name in known):
            # One thing under two names: a selector sees the one that comes last.
            orders = [(tuple(each.attributes), tuple(each.capacity)) for each in self._devices]
            known["", "order"] = column_of(orders)
        joint = joint_column(list(known.values()))
        cells = []
        for cell in joint.cells:
            assert isinstance(cell, tuple)
            there = zip(known, cell, strict=True)
            cells.append((self._driver, *((key, each) for key, each in there if each is not None)))
        return column_with(tuple(cells), joint.codes)

    @property
    def profiles(self) -> Column:
        """All that decides what a request consumes of a device's capacities."""
        if self._profiles is None:
            self._profiles = column_of(
                [(bool(each.allow_multiple_allocations), msgspec.json.encode(each.capacity)) for each in self._devices]
            )
        return self._profiles

    def _empty(self) -> Column:
        return column_with((None,), bytes(len(self._devices)))

    def _find_unreadable(self) -> int:
        found = 0
        for column in self._attributes.values():
            suspects = [
                code for code, cell in enumerate(column.cells) if not isinstance(cell, str) and cell is not None
            ]
            bad = [code for code in suspects if not _is_readable_attribute(column.cells[code])]
            found |= column.mask_of(bad) if bad else 0
        for column in self._capacity.values():
            bad = [code for code, cell in enumerate(column.cells) if isinstance(cell, str) and not _is_quantity(cell)]
            found |= column.mask_of(bad) if bad else 0
        return found


def _attribute_column(attributes: Sequence[DeviceAttribute | None]) -> Column:
    fields_of = msgspec.structs.astuple
    codes: dict[Cell, int] = {}
    coded = bytearray()
    for each in attributes:
        fields: Cell = None if each is None else fields_of(each)
        try:
            code = codes.get(fields)
        except TypeError:  # lists
            assert isinstance(fields, tuple)
            fields = tuple(tuple(field) if isinstance(field, list) else field for field in fields)
            code = codes.get(fields)
        if code is None:
            code = codes[fields] = len(codes)
        coded.append(code)
    return column_with(tuple(_compact(fields) for fields in codes), bytes(coded))


_STRING = DeviceAttribute.__struct_fields__.index("string")
_NO_STRING = (None,) * (len(DeviceAttribute.__struct_fields__) - 1)


def _compact(fields: Cell) -> Cell:
    if isinstance(fields, tuple) and fields[:_STRING] + fields[_STRING + 1 :] == _NO_STRING:
        text: Cell = fields[_STRING]
        return text if text is not None else fields
    return fields


def _attribute(cell: Cell) -> DeviceAttribute:
    if isinstance(cell, str):
        return DeviceAttribute(string=cell)
    assert isinstance(cell, tuple)
    fields = zip(DeviceAttribute.__struct_encode_fields__, cell, strict=True)
    return msgspec.convert({name: each for name, each in fields if each is not None}, DeviceAttribute)


def values_of_cell(cell: Cell) -> tuple[Value, ...]:
    """The values of an attribute, as constraints see them (`constraints.attribute_values`); none for None."""
    if isinstance(cell, str):
        return (cell,)
    return () if cell is None else _values_of_fields(cell)


@lru_cache(maxsize=65536)
def _values_of_fields(cell: Cell) -> tuple[Value, ...]:
    assert isinstance(cell, tuple)
    int_, bool_, string, version, ints, bools, strings, versions = cell
    for kind, listed, scalar in (
        ("int", ints, int_),
        ("bool", bools, bool_),
        ("string", strings, string),
        ("version", versions, version),
    ):
        found = listed or (() if scalar is None else (scalar,))
        if found:
            return tuple(dict.fromkeys(each if kind == "string" else (kind, each) for each in found))
    return ()


def value_text(value: Value) -> str:
    """For people."""
    return value if isinstance(value, str) else str(value[1])


@lru_cache(maxsize=65536)
def _is_readable_attribute(cell: Cell) -> bool:
    return _is_readable(Device(attributes={"it": _attribute(cell)}))


@lru_cache(maxsize=65536)
def _is_quantity(text: str) -> bool:
    return _is_readable(Device(capacity={"it": DeviceCapacity(value=text)}))


def _is_readable(device: Device) -> bool:
    return isinstance(device_values("", device, lambda value: value), DeviceValues)
