"""The one exception for what a user can put right."""


class UserError(ValueError):
    """A mistake in configuration, data or files, told in one sentence: key, value, remedy.

    The command line prints the sentence and ends with exit code 2; anything else that is raised
    is a fault of the program and keeps its traceback.
    """
