"""Talks to the oracle: asks it a problem or a selector, gets what upstream says. README.md describes the documents."""

import os
import select
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec
from msgspec import field

from schemas.resource import (
    AllocationResult,
    Device,
    DeviceClass,
    DeviceTaintRule,
    ObjectMeta,
    ResourceClaim,
    ResourceSlice,
)

GRACE_S = 5.0  # what the process gets beyond a problem's own limit, before it is given up
CEL_DEADLINE_S = 10.0


class OracleDiedError(Exception):
    """The process ended, or answered something else than an answer: a question that it cannot read, or its own bug."""


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the allocator reads of a node's status."""

    declared_features: list[str] = field(default_factory=list)


class OracleNode(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A corev1.Node with what the allocator reads of it."""

    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    status: NodeStatus = field(default_factory=NodeStatus)


class Problem(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A fleet, who holds what in it, and claims to allocate.

    nodes: tried in this order; the first on which the claims fit is taken.
    held: claims with an allocation.
    together: all claims in one call, as for the claims of one pod; else one after the other, each finding the devices
        of those before it taken.
    timeout_ms: for the whole problem.
    """

    slices: Sequence[ResourceSlice] = ()
    classes: Sequence[DeviceClass] = ()
    taint_rules: Sequence[DeviceTaintRule] = ()
    nodes: Sequence[OracleNode] = ()
    held: Sequence[ResourceClaim] = ()
    claims: Sequence[ResourceClaim] = ()
    together: bool = False
    timeout_ms: int = 0


Outcome = Literal["allocated", "not_found", "error", "timed_out"]


class Attempt(msgspec.Struct, frozen=True, rename="camel"):
    """What became of one claim; of claims allocated together, the same for each.

    node: the one that was taken; "" unless allocated.
    message: of an error, upstream's own text.
    """

    outcome: Outcome
    node: str = ""
    allocation: AllocationResult | None = None
    message: str = ""
    seconds: float = 0.0


class Solution(msgspec.Struct, frozen=True, rename="camel"):
    """One attempt for each claim of the problem, in its order."""

    attempts: list[Attempt]


class DriverDevice(msgspec.Struct, frozen=True, rename="camel"):
    """A device and the driver that its unqualified names belong to."""

    driver: str
    device: Device


class _Selector(msgspec.Struct, frozen=True, rename="camel"):
    expression: str
    devices: Sequence[DriverDevice]


class OracleVerdict(msgspec.Struct, frozen=True, rename="camel"):
    """What a selector says of one device: a value or, if it is not empty, an error."""

    value: bool
    error: str = ""


class Judgement(msgspec.Struct, frozen=True, rename="camel"):
    """What upstream says of a selector.

    refused: why kube-apiserver would refuse it; "" if it would not.
    cost: the estimate for the worst case.
    verdicts: one for each device; none where the expression does not compile.
    """

    cost: int
    refused: str = ""
    verdicts: list[OracleVerdict] | None = None


Answer = TypeVar("Answer")


class Oracle:
    """A context manager; its processes start with the first question and end with it."""

    def __init__(self, binary: Path) -> None:
        self._allocate = _Process([str(binary), "allocate"])
        self._cel = _Process([str(binary), "cel"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._allocate.stop()
        self._cel.stop()

    def allocate(self, problem: Problem) -> list[Attempt]:
        """One attempt for each claim, in their order.

        Where the process does not answer in time, it is started anew, and every claim has timed out.
        """
        deadline_s = (problem.timeout_ms or 5000) / 1000 + GRACE_S
        try:
            return self._allocate.ask(problem, Solution, deadline_s).attempts
        except TimeoutError as error:
            return [Attempt("timed_out", message=str(error), seconds=deadline_s)] * len(problem.claims)

    def judge(self, expression: str, devices: Iterable[DriverDevice] = ()) -> Judgement:
        """Compile a selector and ask it about the devices.

        Raises: TimeoutError if that takes too long; the next question is answered all the same.
        """
        return self._cel.ask(_Selector(expression, list(devices)), Judgement, CEL_DEADLINE_S)


class _Process:
    """One subcommand of the oracle: a line in, a line out."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._running: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def ask(self, question: object, answer: type[Answer], deadline_s: float) -> Answer:
        """Raises: TimeoutError, OracleDiedError. After both the next question starts a new process."""
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(question) + b"\n")
            process.stdin.flush()
            return msgspec.json.decode(self._read_line(process, deadline_s), type=answer)
        except BrokenPipeError as error:
            raise self._died() from error
        except TimeoutError:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.kill()
            self._running.communicate()
            self._running, self._unread = None, b""

    def _start(self) -> subprocess.Popen[bytes]:
        if self._running is None:
            self._running = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._running

    def _read_line(self, process: subprocess.Popen[bytes], deadline_s: float) -> bytes:
        assert process.stdout is not None
        while b"\n" not in self._unread:
            # Each piece may take as long as the whole answer: upstream is silent until it is done, then all comes.
            if not select.select([process.stdout], [], [], deadline_s)[0]:
                raise TimeoutError(f"{' '.join(self._command)} did not answer within {deadline_s:.0f} s")
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                raise self._died()
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self) -> OracleDiedError:
        assert self._running is not None
        try:
            ending = f"ended with code {self._running.wait(GRACE_S)}"
        except subprocess.TimeoutExpired:
            ending = "stopped talking"
        self.stop()
        return OracleDiedError(f"{' '.join(self._command)} {ending}; see stderr for why")
