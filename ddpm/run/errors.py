"""How a program ends when it does not finish: exit code of a stop, and errors that are not bugs."""

import re
import sys

FULL = (  # what CUDA, cuBLAS, cuDNN and NCCL say when a GPU's memory is full, besides torch's own error
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "Cuda failure 2 ",
)  # fmt: skip
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request with a checkpoint saved; the same command continues


class RequestError(ValueError):
    """The request is wrong: one line that says what, and how to fix it. Ends in exit code 2."""


class NotMetError(RequestError):
    """The processes of a run have not found each other. Each process that notices reports it."""


class OutOfMemory(RequestError):
    """The memory of a GPU is full. Ends in exit code 2.

    Attributes:
        reported_here: does this process print the error? Each process whose own GPU is full does.
    """

    exit_code = 2

    def __init__(self, message: str, reported_here: bool = True) -> None:
        super().__init__(message)
        self.reported_here = reported_here


def out_of_memory(error: BaseException, cure: str) -> OutOfMemory | None:
    """The error to raise for torch's `error` if that says that a GPU's memory is full, with the figures that torch
    gives; None for any other error.

    Args:
        cure: what to do, in words.
    """
    torch = sys.modules.get("torch")
    full = torch and (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FULL))
    if not full:
        return out_of_memory(error.__cause__, cure) if error.__cause__ else None  # torch.compile wraps it
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    free = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", str(error))
    figures = [f"{asked[1]} more were asked for"] if asked else []
    figures += [f"{free[2]} of {free[1]} are free"] if free else []
    return OutOfMemory(f"the GPU's memory is full{' (' + ', '.join(figures) + ')' if figures else ''}: {cure}")


class TrainingFailed(RuntimeError):
    """Training cannot go on (a loss that stays non-finite, say). Ends in exit code 1, without a traceback."""


class ProcessesLost(RuntimeError):
    """Other processes of the run no longer answer. Ends in exit code 1, without a traceback.

    Attributes:
        reported_here: does this process print the error? One of the remaining processes does.
    """

    exit_code = 1

    def __init__(self, message: str, reported_here: bool) -> None:
        super().__init__(message)
        self.reported_here = reported_here
