"""The one error that a user's input raises: one sentence that says what to write instead."""


class KDError(ValueError):
    """Bad input or an impossible combination. The command line prints its text and exits with 2."""
