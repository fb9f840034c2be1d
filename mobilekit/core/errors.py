"""Errors that a user can act on: what is wrong, and what to do about it."""

from __future__ import annotations


class MobileKitError(Exception):
    """Base of every error that the command line prints as two lines.

    Args:
        message: What was given and what was expected, one line.
        hint: What to do about it, one line.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}"


class UsageError(MobileKitError):
    """A wrong option, name, value or path (exit code 2)."""


class InvalidInputError(MobileKitError):
    """A file that is missing, damaged or contradicts itself (exit code 2)."""


class UnsupportedModelError(MobileKitError):
    """A model class or layout that no family covers (exit code 2)."""


class OutputError(MobileKitError):
    """The output cannot be written: no space, no permission (exit code 2)."""


class CheckFailedError(MobileKitError):
    """The work ran, but a check on its result failed (exit code 1)."""

    exit_code = 1


class MissingDependencyError(MobileKitError):
    """An optional package or a device is not there (exit code 3)."""

    exit_code = 3


class NotExecutableError(MobileKitError):
    """An artifact that cannot be run on this machine; its parity record says why."""

    exit_code = 3
