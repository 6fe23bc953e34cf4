"""What all tests share: async tests run on asyncio, for nats-py knows nothing else; a long run says what took long."""

from collections import Counter, defaultdict

import pytest

SHORT_RUN_S = 60  # a run of no more than this does not say where its time went

_seconds: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    where = report.nodeid.partition("::")[0].rpartition("/")[0]
    _seconds[where] += report.duration
    _tests[where] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total = sum(_seconds.values())
    if total <= SHORT_RUN_S:
        return
    terminalreporter.section("where the time went")
    for where, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:7.1f} s {seconds / total:4.0%}  {where or '.'} ({_tests[where]} tests)")
    terminalreporter.write_line(f"{total:7.1f} s        in {_tests.total()} tests and their fixtures")
