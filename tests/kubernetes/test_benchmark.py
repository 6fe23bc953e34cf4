"""The benchmark of `make bench` runs, in small."""

from tests.bench import kubernetes
from tests.bench.test_benchmarks_run import check
from tests.controlplane.programs import Programs


def test_every_row_has_a_cell_for_every_column(programs: Programs) -> None:
    check(kubernetes.measure(5, 5, 2, 3))
