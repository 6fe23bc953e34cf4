"""Errors that end a command with a sentence instead of a traceback."""


class CommandError(Exception):
    """What went wrong and what to do, for the person at the terminal."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
