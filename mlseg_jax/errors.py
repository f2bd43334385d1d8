"""What a user can do wrong."""


class UserError(ValueError):
    """One sentence: what was wrong, where, what to do. Commands print it and stop."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Text without halves of characters, which no terminal and no file takes.

    They stand for bytes of file names that are no UTF-8, and become ``\\udcff``.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
