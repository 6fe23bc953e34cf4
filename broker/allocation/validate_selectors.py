"""Selectors that do not compile, found as soon as a claim or a class arrives: no device is needed to say so."""

import msgspec

from broker.allocation.cel.engine import SelectorCompileError
from broker.allocation.index import DeviceIndex
from schemas.resource import DeviceClass, DeviceSelector, ResourceClaim


class SelectorError(msgspec.Struct, frozen=True):
    """One selector that does not compile.

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


def compile_claim(claim: ResourceClaim, device_index: DeviceIndex) -> list[SelectorError]:
    """The claim's own selectors that do not compile, in its order; with one of them it can never be allocated."""
    errors: list[SelectorError] = []
    for index, request in enumerate(claim.spec.devices.requests):
        path = f"spec.devices.requests[{index}]"
        if request.exactly is not None:
            errors += _compile_all(request.exactly.selectors, f"{path}.exactly", device_index)
        for sub_index, sub_request in enumerate(request.first_available):
            errors += _compile_all(sub_request.selectors, f"{path}.firstAvailable[{sub_index}]", device_index)
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
            errors.append(
                SelectorError(
                    path=f"{path}.selectors[{index}].cel.expression",
                    message=compiled.message,
                    line=compiled.line,
                    column=compiled.column,
                    caret=compiled.caret,
                )
            )
    return errors
