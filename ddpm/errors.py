"""The two ways a run ends badly that are not bugs."""


class RequestError(ValueError):
    """The request is wrong: one line that says what and how to mend it. Ends in exit code 2."""


class TrainingFailed(RuntimeError):
    """Training cannot go on (a loss that stays non-finite, say). Ends in exit code 1, without a traceback."""
