"""The one exception that reaches a user."""


class ComposerError(ValueError):
    """Something the user gave cannot be used.

    The message names the file or the setting, says what is wrong with it and what to do.
    """
