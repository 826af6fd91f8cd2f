"""Every exception that lossforge raises on purpose, in one tree under `LossforgeError`.

Each class also derives from the built-in exception that a caller would expect (`ValueError`, `TypeError` …), so
that code which knows nothing of lossforge still catches it.
"""


class LossforgeError(Exception):
    """The root of all errors raised on purpose by lossforge."""

    ag_pass_through = True  # out of a tf.function too, where AutoGraph would raise an error of its own instead


class DefinitionError(LossforgeError, ValueError):
    """A loss definition breaks a rule of the language."""


class SignatureError(DefinitionError):
    """A signature cannot be read, or the definition under it does not keep it."""


class AxisError(DefinitionError):
    """An operation names an axis that its operand does not have."""


class TracingError(DefinitionError, TypeError):
    """A traced value was used as if it were a number: in `if`, `float()`, an in-place write …."""


class NotDifferentiableError(DefinitionError):
    """The gradient is zero almost everywhere, so nothing could be trained with it."""


class GradientMismatchError(DefinitionError):
    """A gradient written by hand differs from the derived one."""


class ShapeError(LossforgeError, ValueError):
    """The shapes of a call break the loss's signature."""


class DtypeError(LossforgeError, TypeError):
    """An argument has a dtype that its role forbids."""


class FrameworkError(LossforgeError, TypeError):
    """Arrays of several frameworks in one call, or of a framework that is not known."""


class ParameterError(LossforgeError, TypeError):
    """A parameter is unknown, missing, or not a scalar."""


class IndexRangeError(LossforgeError, ValueError):
    """A target class lies outside of its axis."""


class UnsupportedError(LossforgeError, NotImplementedError):
    """A transformation that would be silently wrong, and is therefore refused."""


class AdoptionError(LossforgeError, ValueError):
    """A loss written for another library holds an operation that cannot be imported."""


class MissingPackageError(LossforgeError, ImportError):
    """A package that is not among lossforge's own dependencies is needed, and not installed."""


class StabilityWarning(UserWarning):
    """A formula that is right in exact arithmetic loses accuracy in floating point."""


class DomainWarning(UserWarning):
    """A gradient written by hand holds only for a part of what its loss accepts."""


class BroadcastWarning(UserWarning):
    """Two arrays of a loss are broadcast against each other along dimensions of the same size, perhaps by mistake."""
