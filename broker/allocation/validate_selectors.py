"""Expressions that do not compile, found as soon as a claim or a class arrives: no device is needed to say so."""

import msgspec

from broker.allocation.budget import Budget, compile_steps
from broker.allocation.cel.engine import SelectorCompileError
from broker.allocation.index import DeviceIndex
from schemas.resource import DeviceClass, DeviceSelector, DeviceSubRequest, ExactDeviceRequest, ResourceClaim


class SelectorError(msgspec.Struct, frozen=True):
    """One selector, or derived attribute, that does not compile.

    path: of its expression, as "spec.devices.requests[0].exactly.selectors[1].cel.expression".
    line, column: where in the expression, from 1; 0 where the expression as a whole is meant.
    caret: the line of the expression with a mark below the place, or "".
    """

    path: str
    message: str
    line: int
    column: int
    caret: str

    def sentence(self) -> str:
        """All of it for people, the caret on lines of its own."""
        return f"{self.path} does not compile: {SelectorCompileError(self.message, self.line, self.column, self.caret)}"


def compile_claim(claim: ResourceClaim, device_index: DeviceIndex, budget: Budget) -> list[SelectorError]:
    """The claim's own expressions that do not compile, in its order; with one of them it can never be allocated.

    budget: charged for each expression once.
    Raises: BudgetExceededError.
    """
    charged: set[str] = set()
    errors: list[SelectorError] = []

    def charge(expression: str) -> None:
        if expression not in charged:
            charged.add(expression)
            budget.spend(compile_steps(expression))

    for index, request in enumerate(claim.spec.devices.requests):
        path = f"spec.devices.requests[{index}]"
        places: list[tuple[str, ExactDeviceRequest | DeviceSubRequest]] = [
            (f"{path}.firstAvailable[{sub_index}]", each) for sub_index, each in enumerate(request.first_available)
        ]
        if request.exactly is not None:
            places.insert(0, (f"{path}.exactly", request.exactly))
        for place, each in places:
            for selector in each.selectors:
                charge(selector.cel.expression if selector.cel else "")
            errors += _compile_all(each.selectors, place, device_index)
            for attribute_index, attribute in enumerate(each.derived_attributes):
                charge(attribute.expression)
                compiled = device_index.compile_attribute(attribute.expression)
                if isinstance(compiled, SelectorCompileError):
                    errors.append(_error(f"{place}.derivedAttributes[{attribute_index}].expression", compiled))
    return errors


def compile_class(device_class: DeviceClass, device_index: DeviceIndex) -> list[SelectorError]:
    """The class's selectors that do not compile; with one of them no claim can use it."""
    return _compile_all(device_class.spec.selectors, "spec", device_index)


def _compile_all(selectors: list[DeviceSelector], path: str, device_index: DeviceIndex) -> list[SelectorError]:
    errors: list[SelectorError] = []
    for index, selector in enumerate(selectors):
        if selector.cel is None:
            continue  # refused by `unsupported` and by validation
        compiled = device_index.compile(selector.cel.expression)
        if isinstance(compiled, SelectorCompileError):
            errors.append(_error(f"{path}.selectors[{index}].cel.expression", compiled))
    return errors


def _error(path: str, compiled: SelectorCompileError) -> SelectorError:
    return SelectorError(path, compiled.message, compiled.line, compiled.column, compiled.caret)
