"""Why nothing fits: one reason that a machine can match on, and a sentence for the operator.

The reason is found by asking again with more and more in the way looked away from, what passes by itself first: the
free devices of a busy fleet before its tainted ones, and so on down the list of causes. The first thing without
which the claims would fit is the reason. So `DevicesInUse` promises that they fit once holders let go; where the budget
ends before that is known, nothing is promised, and the reason is `SearchBudgetExceeded`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from broker.allocation.budget import Budget, BudgetExceededError
from broker.allocation.candidates import View
from broker.allocation.cel.engine import SelectorPlace, describe_failure
from broker.allocation.index import FailedSelector, Fleet, Groups, IndexedDevice
from broker.allocation.nodes import ANY_NODE, NodeGroup, NodeView
from broker.allocation.nodewise import search_nodes
from broker.allocation.reasons import Cause, NoFit, Reason, RequestReport, WaitsOn
from broker.allocation.report import Reporter, sentence
from broker.allocation.requests import Alternative, Request, claim_name
from broker.allocation.search import SelectorFailedError
from broker.allocation.snapshot import Snapshot
from schemas.resource import ResourceClaim
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

_SENTENCES_SHOWN = 8  # as many as a request can have alternatives; all of them are in NoFit.requests

# From what passes by itself to what never will: the causes of `reasons`, last first.
_REASONS = {
    Cause.AVOIDED: Reason.DEVICES_AVOIDED,
    Cause.IN_USE: Reason.DEVICES_IN_USE,
    Cause.TAINT: Reason.DEVICES_TAINTED,
    Cause.POOL_INVALID: Reason.POOL_INVALID,
    Cause.POOL_INCOMPLETE: Reason.POOL_INCOMPLETE,
    Cause.NODE: Reason.NO_MATCHING_NODE,
    Cause.UNSUPPORTED: Reason.UNSUPPORTED_FEATURE,
}


@dataclass(frozen=True)
class Attempt:
    """An allocation that failed, with all that it looked at.

    budget: for finding out why. Half of it is for counting, so that there is a reason even where there is too much to
        count.
    """

    claims: Sequence[ResourceClaim]
    requests: Sequence[Request]
    snapshot: Snapshot
    fleet: Fleet
    groups: Groups
    budget: Budget

    @property
    def steps(self) -> int:
        """How many the search for the reason may take, with what is counted for it."""
        return self.budget.steps

    @property
    def spent(self) -> int:
        """How many were taken, without those that were kept for counting and not needed for it."""
        kept = self._counting.left if "_counting" in vars(self) else 0
        return self.budget.spent - kept

    @cached_property
    def everyone(self) -> View:
        """What all nodes in question together see."""
        name = next((group.node.name for group in self.groups if group.node.name), "")
        skips = any(group.node.skips_operations for group in self.groups)
        reaches = frozenset().union(*(group.reaches or () for group in self.groups))
        return View(self.snapshot, self.fleet, NodeGroup(NodeView(name, skips_operations=skips), reaches))

    @cached_property
    def _counting(self) -> Budget:
        counting = Budget(self.budget.left // 2)
        self.budget.spend(counting.steps)
        return counting

    @cached_property
    def _reporter(self) -> Reporter:
        return Reporter(self.snapshot, self.fleet, self.everyone, self.groups, self._counting)

    @cached_property
    def reports(self) -> dict[Alternative, RequestReport]:
        """What became of the devices, for each alternative in order, as far as the budget lasts."""
        found: dict[Alternative, RequestReport] = {}
        try:
            for each in (each for request in self.requests for each in request.alternatives):
                found[each] = self._reporter.report(self.claims[each.claim_index], each)
        except BudgetExceededError:
            pass
        return found

    def least(self, alternative: Alternative) -> int:
        """How many devices the alternative needs at least."""
        return self._reporter.least(alternative) if alternative in self.reports else 1

    @property
    def is_counted(self) -> bool:
        """The budget lasted for all reports."""
        return len(self.reports) == sum(len(request.alternatives) for request in self.requests)

    def no_fit(self, reason: Reason, message: str) -> NoFit:
        """The answer, with the reports and with what could change it."""
        reports = tuple(self.reports.values())
        alternatives = [each for request in self.requests for each in request.alternatives]
        classes = dict.fromkeys(each.device_class.metadata.name for each in alternatives)
        waits_on = WaitsOn(
            # What was not counted may wait for any pool.
            pools=tuple(
                sorted(self._reporter.contended if self.is_counted else {each.key for each in self.fleet.pools})
            ),
            classes=tuple(classes),
            slices=True,
            nodes=bool(self.fleet.reaches)
            or any(each.cause is Cause.NODE for report in reports for each in report.ruled_out),
        )
        return NoFit(reason, message, reports, waits_on)

    @cached_property
    def short(self) -> list[Request]:
        """The requests that cannot be satisfied even by themselves."""
        return [
            request
            for request in self.requests
            if all(each in self.reports and _is_short(self.reports[each]) for each in request.alternatives)
        ]

    def sentences(self) -> str:
        """About the requests that are short; about all of them if none is."""
        told = []
        for each in (each for request in self.short or self.requests for each in request.alternatives):
            if each not in self.reports:
                told.append(f"request {each.name}: there are too many devices to count")
                continue
            where = f"claim {self.reports[each].claim}: " if len(self.claims) > 1 else ""
            told.append(where + sentence(self.reports[each], self.snapshot.node))
        hidden = len(told) - _SENTENCES_SHOWN
        return "; ".join(told[:_SENTENCES_SHOWN]) + (f"; and {hidden} more like these" if hidden > 0 else "")


def _is_short(report: RequestReport) -> bool:
    is_spoilt = report.takes_all and any(each.cause in _REASONS for each in report.ruled_out)
    return is_spoilt or report.nearest < max(1, report.needed)


def explain(attempt: Attempt) -> NoFit:
    """The reason why a search that came to its end found nothing."""
    if (failed := _failed_selector(attempt)) is not None:
        return explain_failed_selector(attempt, *failed)
    if too_many := _too_many(attempt):
        return attempt.no_fit(Reason.TOO_MANY_DEVICES, too_many)
    try:
        reason = _reason(attempt)
    except BudgetExceededError:
        return attempt.no_fit(
            Reason.SEARCH_BUDGET_EXCEEDED,
            f"nothing fits, and the search for what stands in the way ended after {attempt.steps} steps; "
            f"fewer or simpler constraints make it shorter: {attempt.sentences()}",
        )
    message = attempt.sentences()
    if not attempt.short and attempt.is_counted:
        message = f"what the requests can use does not fit together: {message}"
    if reason is Reason.NO_MATCHING_DEVICE:
        incomplete = [pool.pool for pool in attempt.fleet.in_trouble() if not pool.pool.is_complete]
        message += "".join(f"; pool {pool.key} is not complete: {pool.problem}" for pool in incomplete[:1])
    return attempt.no_fit(reason, message)


def _failed_selector(attempt: Attempt) -> tuple[Alternative, IndexedDevice, FailedSelector] | None:
    """The first device that a search would have come to on which a selector failed."""
    try:
        failing = [each for each in attempt.reports if attempt.everyone.candidates(each, attempt.budget).offer.may_fail]
        for group in attempt.groups if failing else ():
            view = attempt.everyone.of(group)
            for alternative in failing:
                candidates = view.candidates(alternative, attempt.budget)
                device = next(iter(candidates.failures), None)
                if device is not None:
                    return alternative, device, candidates.failures[device]
    except BudgetExceededError:
        pass
    return None


def explain_failed_selector(
    attempt: Attempt, alternative: Alternative, device: IndexedDevice, failed: FailedSelector
) -> NoFit:
    """A selector failed where the search had to have its verdict."""
    if failed.position < alternative.class_selectors:
        place = SelectorPlace(f"DeviceClass {alternative.device_class.metadata.name}", failed.position)
    else:
        place = SelectorPlace(f"request {alternative.name}", failed.position - alternative.class_selectors)
    return attempt.no_fit(Reason.SELECTOR_FAILED, describe_failure(place, device.key, failed.failure))


def explain_exceeded_budget(attempt: Attempt, steps: int) -> NoFit:
    """The search ended without an answer, after so many steps."""
    return attempt.no_fit(
        Reason.SEARCH_BUDGET_EXCEEDED,
        f"the search ended after {steps} steps without an answer; fewer or simpler constraints make it shorter: "
        f"{attempt.sentences()}",
    )


def _too_many(attempt: Attempt) -> str | None:
    for index, claim in enumerate(attempt.claims):
        least = sum(
            min(attempt.least(each) for each in request.alternatives)
            for request in attempt.requests
            if request.claim_index == index
        )
        if least > ALLOCATION_RESULTS_MAX:
            name = claim_name(claim)
            return f"claim {name} asks for {least} devices, and a claim can have at most {ALLOCATION_RESULTS_MAX}"
    return None


def _reason(attempt: Attempt) -> Reason:
    """Raises: BudgetExceededError where the search for it came to no end: then nothing is promised."""
    ignored: frozenset[Cause] = frozenset()
    groups = attempt.groups
    seen = {each.cause for report in attempt.reports.values() for each in report.ruled_out}
    # What nothing was ruled out by is not asked about, but for what is not about single devices: nodes reach too few
    # together, and what holders leave is too little together.
    together = (Cause.IN_USE, Cause.NODE)
    for cause, reason in _REASONS.items():
        ignored |= {cause}
        if cause is Cause.NODE:
            groups = Groups([ANY_NODE])
        if not _occurs(cause, attempt) or (attempt.is_counted and cause not in seen and cause not in together):
            continue
        if _would_fit(attempt, groups, ignored, with_constraints=True):
            return reason
    if _would_fit(attempt, groups, ignored, with_constraints=False):
        return Reason.CONSTRAINT_UNSATISFIABLE
    return Reason.NO_MATCHING_DEVICE


def _occurs(cause: Cause, attempt: Attempt) -> bool:
    """Some device may be ruled out by the cause; this costs nothing, so it is known even where nothing was counted."""
    if cause is Cause.AVOIDED:
        return bool(attempt.snapshot.avoid)
    if cause is Cause.IN_USE:
        return bool(attempt.snapshot.in_use) and any(pool.used for pool in attempt.fleet.pools)
    return attempt.fleet.obstructed[cause] > 0


def _would_fit(attempt: Attempt, groups: Groups, ignored: frozenset[Cause], with_constraints: bool) -> bool:
    """The claims would fit, or a selector fails first.

    Raises: BudgetExceededError.
    """
    view = View(attempt.snapshot, attempt.fleet, groups[0], ignored)
    try:
        found = search_nodes(attempt.requests, attempt.claims, view, groups, attempt.budget, with_constraints)
    except SelectorFailedError:
        return True
    return found is not None
