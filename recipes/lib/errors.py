"""The one exception for what a user can put right."""


class UserError(ValueError):
    """A mistake in configuration, data or files, told in one sentence: key, value, remedy.

    The command line prints the sentence and ends with exit code 2; anything else that is raised
    is a fault of the program and keeps its traceback.

    Args:
        text: The sentence; `on_one_line` is applied to it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(on_one_line(text))


def on_one_line(text: str) -> str:
    """Spell out what would move the cursor or break a line, such as in a value that is quoted.

    Args:
        text: Any text.

    Returns:
        The same with control characters, separators and halves of characters as escapes.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
