"""How much work one claim may cause: counted in steps, not in seconds, so that a replay ends where the first run did.

One step is about a microsecond. What takes longer is charged for more, and always the same, whether or not its result
is kept from an earlier claim: what was decided must not depend on what a process happens to remember.

What is charged: compiling a claim's own expressions, by their length; looking at devices one by one, in candidates,
narrowing, search and reports; and each try of a candidate with all that it means for constraints, counters and
capacities. What is not: evaluating expressions on devices. However long that takes, the claim must be placed, and it is
done once for all claims that come; so it is done ahead, a piece at a time (`allocate` with an allowance), and a budget
says how large a piece. How long one evaluation can take is known from the expression (`cel.work`).
"""

# A fifth of what it takes, which is some 11 us: else a selector as long as the API allows, 10 KiB, would be too long
# for any claim. Each is compiled only once, so what a claim with new ones can cost beyond its budget, it costs once.
_COMPILE_STEPS_PER_BYTE = 2
_EVALUATION_STEPS = 15  # most of it for making a device ready
_BYTES_PER_STEP = 25


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
            self._left = 0
            raise BudgetExceededError

    def begin(self, steps: int) -> None:
        """Take the steps for a piece of work that cannot be divided: possible as long as any are left.

        Raises: BudgetExceededError.
        """
        if self._left <= 0:
            raise BudgetExceededError
        self._left -= steps

    @property
    def spent(self) -> int:
        """How many were taken: more than were allowed, where a piece of work could not be divided."""
        return self.steps - self._left

    @property
    def left(self) -> int:
        """How many steps may still be taken."""
        return max(self._left, 0)


def compile_steps(expression: str) -> int:
    """What it takes to compile an expression."""
    return 1 + _COMPILE_STEPS_PER_BYTE * len(expression)


def evaluation_steps(expression: str, steps: int) -> int:
    """What it takes to evaluate an expression once, device and all.

    steps: the evaluation alone, at worst.
    """
    return _EVALUATION_STEPS + len(expression) // _BYTES_PER_STEP + steps
