"""CEL device selectors, as Kubernetes 1.37 evaluates them.

`default_engine()` compiles expressions and binds devices; a selector's verdict is true, false or a failure. The
libraries behind it are in `cel_expr` and `cel_python`, which nobody but `engine` and tests needs to import.
"""

from broker.allocation.cel.advice import Advice, advise
from broker.allocation.cel.engine import (
    BoundDevice,
    CachingEngine,
    Selector,
    SelectorCompileError,
    SelectorEngine,
    SelectorFailure,
    SelectorPlace,
    Verdict,
    default_engine,
    describe_compile_error,
    describe_failure,
)
from broker.allocation.cel.fields import WHOLE_DEVICE, FieldPath, fields_read, project, texts_required

__all__ = [
    "WHOLE_DEVICE",
    "Advice",
    "BoundDevice",
    "CachingEngine",
    "FieldPath",
    "Selector",
    "SelectorCompileError",
    "SelectorEngine",
    "SelectorFailure",
    "SelectorPlace",
    "Verdict",
    "advise",
    "default_engine",
    "describe_compile_error",
    "describe_failure",
    "fields_read",
    "project",
    "texts_required",
]
