"""The errors that plssm raises on purpose; all of them are ``ValueError`` subclasses."""

from __future__ import annotations

__all__ = ["CapabilityError", "DataError", "PlssmError", "ShapeError"]


class PlssmError(ValueError):
    """Base of every error that plssm raises on purpose."""


class ShapeError(PlssmError):
    """An array or a parameter has the wrong shape for the object it is given to."""


class CapabilityError(PlssmError):
    """An engine or a method cannot do what is asked; the message says why and what can."""


class DataError(PlssmError):
    """Data that cannot be used, with the place of the fault and the way to mend it.

    Args:
        what: The fault in one sentence.
        modality: Name of the modality (or "inputs", "latent") that has the fault.
        trial: Name or number of the trial.
        axis: Axis and position, such as "channel 3" or "time".
        got: What was found.
        wanted: What was expected.
        fix: What to do about it.

    Example:
        >>> print(DataError("times are not sorted", modality="bold", trial=2, fix="sort them"))
        modality 'bold', trial '2': times are not sorted. Fix: sort them.
    """

    def __init__(
        self,
        what: str,
        *,
        modality: str | None = None,
        trial: str | int | None = None,
        axis: str | None = None,
        got: object = None,
        wanted: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.modality, self.axis, self.fix = what, modality, axis, fix
        self.trial = None if trial is None else str(trial)
        self.got, self.wanted = got, wanted
        place = []
        if modality is not None:
            place.append(f"modality {modality!r}")
        if trial is not None:
            place.append(f"trial {str(trial)!r}")
        if axis is not None:
            place.append(axis if " " in axis else f"{axis} axis")
        message = f"{', '.join(place)}: {what}" if place else what
        if got is not None:
            message += f"; got {got}"
        if wanted is not None:
            message += f"{',' if got is not None else ';'} wanted {wanted}"
        if fix is not None:
            message = f"{message.rstrip('.')}. Fix: {fix.rstrip('.')}."
        super().__init__(message)
