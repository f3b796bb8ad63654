"""The ways a run ends badly that are not bugs."""


class RequestError(ValueError):
    """The request is wrong: one line that says what and how to mend it. Ends in exit code 2."""


class NotMetError(RequestError):
    """The processes of a run have not found each other: each that notices says so, as none can speak for all."""


class TrainingFailed(RuntimeError):
    """Training cannot go on (a loss that stays non-finite, say). Ends in exit code 1, without a traceback."""


class ProcessesLost(RuntimeError):
    """Other processes of the run do not answer any more. Ends in exit code 1, without a traceback.

    `spokesman` says whether this process is the one among those that are left that is to tell of it.
    """

    def __init__(self, message: str, spokesman: bool) -> None:
        super().__init__(message)
        self.spokesman = spokesman
