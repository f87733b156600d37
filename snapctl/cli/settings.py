"""What the options of the program itself decide, for the command that runs and for those who report its errors."""

from __future__ import annotations


class Settings:
    """One run's settings.

    Attributes:
        debug: print tracebacks with errors.
    """

    def __init__(self) -> None:
        self.debug = False
