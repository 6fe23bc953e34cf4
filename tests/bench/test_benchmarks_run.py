"""Every benchmark runs, in small; each of them checks for itself that both of its sides gave the same answer."""

from collections.abc import Callable

import pytest

from tests.bench import (
    allocation,
    audit,
    cel,
    decode,
    end_to_end,
    failover,
    machine,
    start,
    throughput,
    tracing,
    upstream,
)
from tests.bench.measure import Table, growth
from tests.oracle.client import Oracle
from tests.oracle.fixture import oracle

__all__ = ["oracle"]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda: allocation.measure((100,)), id="the allocation core"),
        pytest.param(lambda: machine.measure(((20, 10),), (5,), 10), id="the machine"),
        pytest.param(lambda: start.measure((30,)), id="a start"),
        pytest.param(lambda: start.measure_checkpoints((10,), tail=8), id="a start from a checkpoint"),
        pytest.param(lambda: decode.measure((2,), (2,)), id="decoding"),
        pytest.param(lambda: cel.measure(1), id="CEL"),
        pytest.param(lambda: end_to_end.measure((4,), 6, 1), id="end to end", marks=pytest.mark.bus),
        pytest.param(lambda: throughput.measure(20, 20), id="throughput", marks=pytest.mark.bus),
        pytest.param(lambda: audit.measure(20), id="an audit", marks=pytest.mark.bus),
        pytest.param(lambda: tracing.measure(20), id="tracing"),
        pytest.param(lambda: failover.measure(1), id="failover", marks=pytest.mark.processes),
    ],
)
def test_every_row_has_a_cell_for_every_column(run: Callable[[], list[Table]]) -> None:
    check(run())


def test_both_sides_of_a_comparison_with_upstream_place_the_same_claims(oracle: Oracle) -> None:
    compared, grown = upstream.measure((upstream.Run("one", 128, 5, "1/50"),), (64,))
    check([compared, grown])
    assert compared.rows[0][-1] == "5"


def check(tables: list[Table]) -> None:
    assert tables
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert table.text().count("\n|") == len(table.rows) + 2


@pytest.mark.parametrize(
    ("seconds", "exponent"),
    [
        pytest.param(1.0, "0.0", id="the same time for ten times as much"),
        pytest.param(10.0, "1.0", id="in proportion"),
        pytest.param(100.0, "2.0", id="the square"),
    ],
)
def test_growth_is_the_exponent(seconds: float, exponent: str) -> None:
    assert growth((100, 1.0), 1_000, seconds) == exponent
