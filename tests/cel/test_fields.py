"""Which fields an expression reads, and that they decide its verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.allocation.cel import WHOLE_DEVICE, FieldPath, SelectorCompileError, fields_read, project, texts_required
from broker.allocation.cel.cel_expr import shared_engine
from broker.allocation.cel.values import DeviceValues, device_values, split_name
from schemas.resource import Device, DeviceAttribute, DeviceCapacity
from tests.cel.selectors import CASES, Expected

D = 'device.attributes["d"]'


@pytest.mark.parametrize(
    ("expression", "places"),
    [
        pytest.param("true", [], id="nothing"),
        pytest.param(f'{D}.x == 1 && {D}["y"] == 2', ["attributes/d/x", "attributes/d/y"], id="literal names"),
        pytest.param('device.driver == "a"', ["driver"], id="the driver"),
        pytest.param("device.allowMultipleAllocations", ["allowMultipleAllocations"], id="shares"),
        pytest.param('device.capacity["d"].m == quantity("1")', ["capacity/d/m"], id="a capacity"),
        pytest.param(f'{D}.?x.orValue(1) == 1 && {D}[?"y"].hasValue()', ["attributes/d/x", "attributes/d/y"], id="?"),
        pytest.param(f'has({D}.x) && "y" in {D}', ["attributes/d/x", "attributes/d/y"], id="has and in"),
        pytest.param('"d" in device.attributes', ["attributes/d"], id="a domain's existence"),
        pytest.param(f"{D}.list.exists(x, x == {D}.y)", ["attributes/d/list", "attributes/d/y"], id="macros"),
        pytest.param(f"{D}.list[0] == 1", ["attributes/d/list"], id="inside an attribute"),
        pytest.param(f"cel.bind(d, {D}, d.x == d.y)", ["attributes/d/x", "attributes/d/y"], id="bindings"),
        pytest.param("cel.bind(d, device, d.driver == '')", ["driver"], id="the device bound"),
        pytest.param('["a"].all(device, device == "a")', [], id="another variable called device"),
        pytest.param(f"{D}.x == 1 || {D} == {{}}", ["attributes/d"], id="a whole domain covers its parts"),
        pytest.param(f'{D}.all(k, k != "")', ["attributes/d"], id="iteration reads all"),
        pytest.param("device.attributes[device.driver].x == 1", ["attributes", "driver"], id="a computed name"),
        pytest.param('dyn(device.attributes)["d"].x == 1', ["attributes"], id="a map that escapes"),
        pytest.param(
            f'(device.driver == "" ? {D} : device.attributes["e"]).x == 1',
            ["attributes/d", "attributes/e", "driver"],
            id="a choice between domains",
        ),
    ],
)
def test_reads(expression: str, places: list[str]) -> None:
    assert sorted("/".join(field.parts) for field in fields_read(expression)) == places


def test_a_device_that_escapes_is_read_as_a_whole() -> None:
    assert fields_read("device == device") == WHOLE_DEVICE
    assert fields_read(f"device == device || {D}.x == 1") == WHOLE_DEVICE


@pytest.mark.parametrize(
    ("expression", "texts"),
    [
        pytest.param(f'{D}.x == "a"', {"x": {"a"}}, id="equality"),
        pytest.param(f'"a" == {D}["x"] && {D}.y > 1', {"x": {"a"}}, id="the other way round, and something else"),
        pytest.param(f'{D}.x in ["a", "b"] && ({D}.y == "c")', {"x": {"a", "b"}, "y": {"c"}}, id="one of several"),
        pytest.param(f'{D}.x in ["a", "b"] && {D}.x in ["b", "c"]', {"x": {"b"}}, id="both at once"),
        pytest.param(f'{D}.x == "a" || {D}.y == "b"', {}, id="either"),
        pytest.param(f'!({D}.x == "a")', {}, id="not"),
        pytest.param(f'{D}.x != "a"', {}, id="another text"),
        pytest.param(f"{D}.x == 1", {}, id="no text"),
        pytest.param(f'{D}.x in ["a", {D}.y]', {}, id="a list that is not known"),
        pytest.param(f'{D}.?x.orValue("a") == "a"', {}, id="a default"),
        pytest.param('device.driver == "a"', {}, id="no attribute"),
        pytest.param('device.capacity["d"].x == "a"', {}, id="a capacity"),
        pytest.param(f'{D}.y.exists(e, e > 1) && {D}.x == "a"', {}, id="behind a loop, which may not come to its end"),
        pytest.param(f'{D}.x == "a" && {D}.y.exists(e, e > 1)', {"x": {"a"}}, id="before a loop"),
    ],
)
def test_requires_texts(expression: str, texts: dict[str, set[str]]) -> None:
    found = texts_required(expression)
    assert {field.parts[-1]: set(each) for field, each in found.items()} == texts


def test_an_expression_that_does_not_parse() -> None:
    with pytest.raises(SelectorCompileError):
        fields_read("device.driver ==")


def values_of(device: Device) -> DeviceValues:
    values = device_values("gpu.example.com", device, lambda value: value)
    assert isinstance(values, DeviceValues)
    return values


def test_a_projection_tells_apart_what_cel_tells_apart() -> None:
    fields = fields_read('device.attributes["gpu.example.com"].x == 1')
    different: list[dict[str, DeviceAttribute]] = [
        {},
        {"x": DeviceAttribute(int_=1)},
        {"x": DeviceAttribute(bool_=True)},
        {"x": DeviceAttribute(string="1")},
        {"x": DeviceAttribute(ints=[1])},
        {"x": DeviceAttribute(bools=[True])},
        {"x": DeviceAttribute(version="1.0.0")},
    ]
    projections = {project(fields, values_of(Device(name="a", attributes=attributes))) for attributes in different}
    assert len(projections) == len(different)


def test_a_projection_forgets_everything_else() -> None:
    fields = fields_read('device.attributes["gpu.example.com"].x == 1')
    one = Device(name="a", attributes={"x": DeviceAttribute(int_=1), "y": DeviceAttribute(int_=1)})
    other = Device(name="b", attributes={"gpu.example.com/x": DeviceAttribute(int_=1)}, allow_multiple_allocations=True)
    assert project(fields, values_of(one)) == project(fields, values_of(other))


attribute_values = st.one_of(
    st.builds(DeviceAttribute, int_=st.integers(0, 3)),
    st.builds(DeviceAttribute, bool_=st.booleans()),
    st.builds(DeviceAttribute, string=st.sampled_from(["H100", "80Gi", "10.1.2.3", "mig"])),
    st.builds(DeviceAttribute, version=st.sampled_from(["550.54.15", "1.0.0"])),
    st.builds(DeviceAttribute, strings=st.lists(st.sampled_from(["mig", "nvlink"]), min_size=1, max_size=2)),
)
names = ("model", "index", "healthy", "memory", "driverVersion", "features", "ports", "ip", "other.example.com/numa")
devices = st.builds(
    Device,
    name=st.just("gpu-0"),
    attributes=st.dictionaries(st.sampled_from(names), attribute_values, max_size=6),
    capacity=st.dictionaries(
        st.sampled_from(["memory", "other.example.com/memory"]),
        st.builds(DeviceCapacity, value=st.sampled_from(["1Gi", "1024Mi", "80Gi", "500m"])),
        max_size=2,
    ),
    allow_multiple_allocations=st.sampled_from([None, True]),
)
evaluated = [case.expression for case in CASES if case.expected is not Expected.REFUSED]


def is_read(fields: frozenset[FieldPath], *place: str) -> bool:
    return any(field.parts == place[: len(field.parts)] for field in fields)


def with_the_rest_of(other: Device, device: Device, fields: frozenset[FieldPath], driver: str) -> Device:
    """The device in what is read, the other one in everything else."""

    def chosen(field: str, name: str) -> Device:
        return device if is_read(fields, field, *split_name(name, driver)) else other

    return Device(
        name=other.name,
        attributes={
            name: chosen("attributes", name).attributes[name]
            for name in sorted({*device.attributes, *other.attributes})
            if name in chosen("attributes", name).attributes
        },
        capacity={
            name: chosen("capacity", name).capacity[name]
            for name in sorted({*device.capacity, *other.capacity})
            if name in chosen("capacity", name).capacity
        },
        allow_multiple_allocations=(
            device if is_read(fields, "allowMultipleAllocations") else other
        ).allow_multiple_allocations,
    )


@given(
    expression=st.sampled_from(evaluated),
    driver=st.sampled_from(["gpu.example.com", "nic.example.com"]),
    device=devices,
    other=devices,
)
def test_devices_with_equal_projections_get_equal_verdicts(
    expression: str, driver: str, device: Device, other: Device
) -> None:
    engine = shared_engine()
    fields = fields_read(expression)
    changed = with_the_rest_of(other, device, fields, driver)
    projections = []
    for one in (device, changed):
        values = device_values(driver, one, lambda value: value)
        assert isinstance(values, DeviceValues)
        projections.append(project(fields, values))
    assert projections[0] == projections[1]
    selector = engine.compile(expression)
    assert selector.evaluate(engine.bind(driver, device)) == selector.evaluate(engine.bind(driver, changed))
