"""`python docs/model/check.py [--small]`: the protocol holds, and each rule that is left out is missed.

--small: configurations that take seconds; else those that take minutes, too. Needs nothing but Python.
"""

import argparse
import sys
import time
from dataclasses import replace

import grants
import ledger
from search import Found, Model, search

ALONE = (0, 1)  # one claim in each of two clusters, for one device
GANG = (0, 1, 0)  # the first and the last belong together, and the other wants one of the two devices

B = grants.Budget
L = ledger.Budget

HOLDS: list[tuple[str, Model]] = [  # type: ignore[type-arg]  # each has its own states
    ("an agent crashes, a write lands late", grants.Grants(ALONE, faults=B(late=1, crash=1))),
    ("an allocation is there before anything", grants.Grants(ALONE, faults=B(crash=1), found={1: 1})),
    ("an allocation is cleared", grants.Grants(ALONE, faults=B(late=1, crash=1, clear=1))),
    ("a cluster is in quarantine", grants.Grants(ALONE, faults=B(late=1, evict=1))),
    ("the ledger is lost and rebuilt", grants.Grants(ALONE, faults=B(late=1, lose_ledger=1))),
    ("a gang, and a write lands late", grants.Grants(GANG, 2, B(late=1), gang=(0, 2))),
    ("two brokers", ledger.Ledger(1, L(2, crash=0, lost_answer=1, late=1, rotation=0))),
]
HOLDS_LARGE: list[tuple[str, Model]] = [  # type: ignore[type-arg]
    ("a claim is deleted", grants.Grants(ALONE, faults=B(late=1, crash=1, delete=1))),
    ("a stranger allocates", grants.Grants(ALONE, faults=B(crash=1, clear=1, stranger=1))),
    ("a cluster is cut off and comes back", grants.Grants(ALONE, faults=B(late=1, fence=1))),
    ("the same, and an agent crashes", grants.Grants(ALONE, faults=B(late=1, crash=1, fence=1))),
    ("a cluster is in quarantine, and an agent crashes", grants.Grants(ALONE, faults=B(late=1, crash=1, evict=1))),
    ("rebuilt, and an agent crashes", grants.Grants(ALONE, faults=B(late=1, crash=1, lose_ledger=1))),
    ("rebuilt, and an allocation is cleared", grants.Grants(ALONE, faults=B(late=1, clear=1, lose_ledger=1))),
    ("a gang, and a claim is deleted", grants.Grants(GANG, 2, B(late=1, delete=1), gang=(0, 2))),
    ("a gang, and the ledger is rebuilt", grants.Grants(GANG, 2, B(lose_ledger=1), gang=(0, 2))),
    ("two brokers, two inputs", ledger.Ledger(2, L(2, crash=1, lost_answer=1, late=1, rotation=0))),
    ("two brokers and two segments", ledger.Ledger(1, L(2, crash=1, lost_answer=0, late=1, rotation=1))),
    ("the same, and one starts again", ledger.Ledger(1, L(3, crash=1, lost_answer=0, late=1, rotation=1))),
]

# What shows that the rule is needed, for each of them.
CAUGHT: dict[str, Model] = {  # type: ignore[type-arg]
    "settle by the decision's number": grants.Grants(ALONE),
    "read and void": grants.Grants(ALONE, faults=B(late=1)),
    "wait for every cluster": grants.Grants(ALONE, found={1: 1}),
    "adopt what is found": grants.Grants(ALONE, found={1: 1}),
    "silence frees nothing": grants.Grants(ALONE, faults=B(evict=1)),
    "the evicted are not believed": grants.Grants(ALONE, faults=B(crash=1, fence=1)),
    "clear before the fence is lifted": grants.Grants(ALONE, faults=B(fence=1)),
    "void before the fence is lifted": grants.Grants(ALONE, faults=B(late=1, fence=1)),
    "rebuild above every number": grants.Grants((0,), faults=B(clear=1, lose_ledger=1)),
    "rebuild voids": grants.Grants(ALONE, faults=B(late=1, lose_ledger=1)),
    "rebuild waits for every cluster": grants.Grants(ALONE, faults=B(lose_ledger=1)),
    "a gang in one batch": grants.Grants(GANG, 2, gang=(0, 2)),
    "append after what was read": ledger.Ledger(1, L(2, crash=0, lost_answer=0, late=0, rotation=0)),
    "look at the tail": ledger.Ledger(1, L(2, crash=0, lost_answer=0, late=0, rotation=0)),
    "the same batch again": ledger.Ledger(2, L(1, crash=0, lost_answer=0, late=1, rotation=0)),
    "an empty segment is not open": ledger.Ledger(1, L(2, crash=0, lost_answer=0, late=0, rotation=1)),
    "close before opening": ledger.Ledger(1, L(1, crash=0, lost_answer=0, late=0, rotation=1)),
    "a checkpoint states decisions again": ledger.Ledger(1, L(1, crash=0, lost_answer=0, late=0, rotation=1)),
}


def main() -> int:
    """0: all is as it must be; 1: it is not."""
    parser = argparse.ArgumentParser(prog="python docs/model/check.py", description=__doc__)
    parser.add_argument("--small", action="store_true", help="only what takes seconds")
    parser.add_argument("--without", metavar="RULE", help="print the history that goes wrong without this rule")
    options = parser.parse_args()
    if options.without is not None:
        if options.without not in CAUGHT:
            parser.error(f"there is no such rule; there are: {', '.join(CAUGHT)}")
        print(_without(options.without).text())
        return 0
    assert CAUGHT.keys() == grants.RULES.keys() | ledger.RULES.keys()
    wrong = states = 0
    for name, model in HOLDS if options.small else HOLDS + HOLDS_LARGE:
        began = time.monotonic()
        found = search(model)
        states += found.states
        is_well = not found.wrong and found.is_whole
        wrong += not is_well
        text = f"holds in all of {found.states:,} states" if is_well else found.text()
        print(f"{name}: {text}, {time.monotonic() - began:.1f} s", flush=True)
    for rule, what in (grants.RULES | ledger.RULES).items():
        found = _without(rule)
        states += found.states
        wrong += not found.wrong
        steps = f"after {len(found.history)} steps: {found.wrong}" if found.wrong else "NOT CAUGHT"
        print(f"without `{rule}` ({what}), {steps}", flush=True)
    print(f"{states:,} states, {len(CAUGHT)} rules left out, {wrong} not as expected")
    return bool(wrong)


def _without(rule: str) -> Found:
    return search(replace(CAUGHT[rule], without=rule))  # type: ignore[type-var]  # both are dataclasses


if __name__ == "__main__":
    sys.exit(main())
