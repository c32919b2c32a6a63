"""The one error of the data room."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: the message names the file or folder, what it holds and what is allowed.

    Example:
        >>> str(DataError("`root` (=/nowhere) is not a folder."))
        '`root` (=/nowhere) is not a folder.'
    """

    def __init__(self, message: str = "") -> None:
        # A DataLoader worker's error is raised again in the main process with the worker's whole traceback
        # as its message; the user's sentence is its last line.
        if message.startswith("Caught DataError in "):
            message = message.rsplit("DataError: ", 1)[-1].strip()
        super().__init__(message)
