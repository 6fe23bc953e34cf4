"""How much work one claim may cause: counted in steps, not in seconds, so that a replay ends where the first run did.

One step is about a microsecond. What takes longer is charged for more, and always the same, whether or not its result
is kept from an earlier claim: what was decided must not depend on what a process happens to remember.

What is charged: compiling a claim's own expressions, by their length; evaluating an expression on a device, by what it
costs at worst; looking at devices one by one, in candidates, narrowing, search and reports; and each try of a candidate
with all that it means for constraints, counters and capacities.
"""

_COMPILE_STEPS_PER_BYTE = 4  # 10 KiB, the longest that the API takes, is most of a default budget
_COST_PER_STEP = 30  # in Kubernetes' units: a comprehension of 1,000 rounds costs 10,000 and takes 0.3 ms


class BudgetExceededError(Exception):
    """More steps would have been taken than are allowed."""


class Budget:
    """The steps that are left."""

    __slots__ = ("_left", "steps")

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Take some steps.

        Raises: BudgetExceededError.
        """
        self._left -= steps
        if self._left < 0:
            raise BudgetExceededError

    @property
    def left(self) -> int:
        """How many steps may still be taken."""
        return max(self._left, 0)


def compile_steps(expression: str) -> int:
    """What it takes to compile an expression."""
    return 1 + _COMPILE_STEPS_PER_BYTE * len(expression)


def evaluation_steps(cost: int) -> int:
    """What it takes to evaluate an expression once.

    cost: at worst, in Kubernetes' units.
    """
    return 1 + cost // _COST_PER_STEP
