"""How a program ends when it does not finish: exit code of a stop, and errors that are not bugs."""

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request with a checkpoint saved; the same command continues


class RequestError(ValueError):
    """The request is wrong: one line that says what, and how to fix it. Ends in exit code 2."""


class NotMetError(RequestError):
    """The processes of a run have not found each other. Each process that notices reports it."""


class TrainingFailed(RuntimeError):
    """Training cannot go on (a loss that stays non-finite, say). Ends in exit code 1, without a traceback."""


class ProcessesLost(RuntimeError):
    """Other processes of the run no longer answer. Ends in exit code 1, without a traceback.

    Attributes:
        reported_here: does this process print the error? One of the remaining processes does.
    """

    def __init__(self, message: str, reported_here: bool) -> None:
        super().__init__(message)
        self.reported_here = reported_here
