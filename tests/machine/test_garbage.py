"""What a step leaves behind: the broker keeps the collector out of steps, so nothing may need it to go."""

import gc
from collections import Counter

from broker.world.federation import ALLOCATE_ANNOTATION
from tests.builders import (
    DRIVER,
    a_choice,
    a_claim,
    a_match,
    a_request,
    a_request_for_all,
    a_slice,
    a_sub_request,
    some_devices,
)
from tests.machine.driven import Driven, everyone_heard

FABRIC = f"{DRIVER}/fabric"
IMMEDIATE = {ALLOCATE_ANNOTATION: "Immediate"}


def test_nothing_needs_the_collector_to_go(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    machine.run()
    gc.collect()
    gc.disable()
    try:
        for turn in range(3):
            east.publishes(a_slice(some_devices(6 + turn, fabric="a"), name="s"))
            claims = [
                a_claim(*requests, name=f"c-{turn}-{number}", constraints=constraints, annotations=IMMEDIATE)
                for number, (requests, constraints) in enumerate(
                    [
                        ([a_request()], []),
                        ([a_request("one"), a_request("two", count=2)], [a_match(FABRIC)]),
                        ([a_request(count=99)], []),
                        ([a_request("x", "device.attributes['no'].such == 1")], []),
                        ([a_choice("any", a_sub_request("many", count=9), a_sub_request("few"))], []),
                        ([a_request_for_all()], [a_match(FABRIC)]),
                    ]
                )
            ]
            for claim in claims:
                east.tells(claim)
            machine.run()
            for claim in claims:
                east.deletes(claim)
            machine.run()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith("broker."))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found
