"""Our selectors against upstream's: the table of tests.cel, and random expressions over all of Kubernetes' libraries.

ORACLE_SELECTORS sets how many expressions are tried (2,000), ORACLE_SEED where they start (1). A longer run:
`ORACLE_SELECTORS=100000 ORACLE_SEED=2 pytest tests/oracle/test_cel_differential.py --timeout 0`.
"""

import os
from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from broker.allocation.cel import SelectorCompileError, SelectorFailure
from broker.allocation.cel.cel_expr import CelExprEngine
from broker.allocation.cel.engine import CachingEngine, SelectorEngine
from schemas.resource import Device
from tests.cel.selectors import CASES, DEVICE, DRIVER, Case, Expected
from tests.oracle.client import DriverDevice, Judgement, Oracle
from tests.oracle.grammar import Writer, expand, functions_in
from tests.oracle.selector_differences import DIFFERENCES, Difference, Example, Seen

SELECTORS = int(os.environ.get("ORACLE_SELECTORS", "2000"))
SEED = int(os.environ.get("ORACLE_SEED", "1"))
AT_ONCE = 20

# With everything, with nothing, and with the attributes in the name of another driver.
DEVICES = [
    DriverDevice(DRIVER, DEVICE),
    DriverDevice(DRIVER, Device(name="bare")),
    DriverDevice("other.example.com", DEVICE),
]


@pytest.fixture(scope="module")
def engine() -> SelectorEngine:
    return CachingEngine(CelExprEngine())


def seen_upstream(judgement: Judgement, device: int) -> Seen:
    if judgement.refused:
        return Seen(Expected.REFUSED, judgement.refused)
    assert judgement.verdicts is not None, "an expression that is not refused has verdicts"
    verdict = judgement.verdicts[device]
    if verdict.error:
        return Seen(Expected.ERROR, verdict.error)
    return Seen(Expected.TRUE if verdict.value else Expected.FALSE)


def seen_by_us(engine: SelectorEngine, expression: str, device: DriverDevice) -> Seen:
    try:
        verdict = engine.compile(expression).evaluate(engine.bind(device.driver, device.device))
    except SelectorCompileError as error:
        return Seen(Expected.REFUSED, error.message)
    if isinstance(verdict, SelectorFailure):
        return Seen(Expected.ERROR, verdict.message)
    return Seen(Expected.TRUE if verdict else Expected.FALSE)


def explanation(expression: str, upstream: Seen, ours: Seen) -> Difference | None:
    return next((each for each in DIFFERENCES if each.explains(expression, upstream, ours)), None)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.about) for case in CASES])
def test_the_table_is_what_upstream_says(oracle: Oracle, case: Case) -> None:
    upstream = seen_upstream(oracle.judge(case.expression, DEVICES[:1]), 0)
    assert upstream.outcome is case.expected, upstream.text


@pytest.mark.parametrize(
    ("difference", "example"),
    [
        pytest.param(difference, example, id=example.expression[:60])
        for difference in DIFFERENCES
        for example in difference.examples
    ],
)
def test_known_differences_are_there(
    oracle: Oracle, engine: SelectorEngine, difference: Difference, example: Example
) -> None:
    expression = expand(example.expression)
    upstream = seen_upstream(oracle.judge(expression, DEVICES[:1]), 0)
    ours = seen_by_us(engine, expression, DEVICES[0])
    assert (upstream.outcome, ours.outcome) == (example.upstream, example.ours), (upstream.text, ours.text)
    assert upstream.outcome is not ours.outcome
    assert difference.explains(expression, upstream, ours)


def test_random_selectors_are_judged_alike(
    oracle: Oracle, engine: SelectorEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    tried: set[str] = set()

    def compare(expression: str) -> None:
        judgement = oracle.judge(expression, DEVICES)
        for index, device in enumerate(DEVICES):
            upstream, ours = seen_upstream(judgement, index), seen_by_us(engine, expression, device)
            if upstream.outcome is not ours.outcome:
                why = explanation(expression, upstream, ours)
                assert why is not None, f"{expression}\nupstream {upstream}\nours {ours}"
                explained[why.why] += 1
                return
        outcomes[seen_upstream(judgement, 0).outcome.value] += 1

    @seed(SEED)
    @settings(max_examples=SELECTORS // AT_ONCE, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    # One draw for many selectors: Hypothesis would vary a few of its draws at a time, and write much the same again.
    @given(random=st.randoms(use_true_random=True))
    def compare_many(random: Random) -> None:
        writer = Writer(random.choice, lambda one_in: random.randrange(one_in) == 0)
        for _ in range(AT_ONCE):
            expression = expand(writer.expression("bool", random.randint(1, 4), {}))
            if expression not in tried:
                compare(expression)
                tried.add(expression)

    compare_many()
    functions = functions_in(tried)
    with capsys.disabled():
        print(f"\n{len(tried):,} selectors with {len(functions)} functions, seed {SEED}: alike {dict(outcomes)}")
        for why, count in explained.most_common():
            print(f"  {count:4} differ: {why}")
    assert len(tried) >= SELECTORS // 2, "too many of the expressions were the same"
    assert min(outcomes[each.value] for each in Expected) >= len(tried) // 20, "one of the outcomes hardly occurs"
    assert len(functions) >= 100, "the expressions do not cover the libraries"
