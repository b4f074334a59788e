"""What a failure from below means for a run, in words that help."""

from __future__ import annotations

from agssp_zoo.errors import TrainingError


def explain(error: Exception, *, out: str, kept: str, several: bool) -> Exception:
    """A failure of disk, memory, a worker or another process as a TrainingError; any other error as it is.

    Args:
        error: what was raised.
        out: the run's folder.
        kept: what there is to go on from.
        several: whether the run has several processes.
    """
    kind, text = type(error).__name__, str(error)
    if isinstance(error, BrokenPipeError):
        return TrainingError(f"Nobody reads what the run says any more (`| head`?); {kept}. Go on with --resume.")
    if isinstance(error, OSError) or kind == "SafetensorError":
        return TrainingError(f"{out}: a file cannot be written ({text}); {kept}. Make room, then go on with --resume.")
    if not isinstance(error, RuntimeError):
        return error
    if kind == "OutOfMemoryError":
        return TrainingError(f"The GPU's memory is too small for this; {kept}. Give a smaller --batch or --size.")
    if "DataLoader worker" in text:
        return TrainingError(
            f"A process that prepares images was ended from outside, as happens when memory or /dev/shm runs out; "
            f"{kept}. Give a smaller --cache-mb, or --workers 0, and go on with --resume."
        )
    if several and ("gloo" in text.lower() or "Connection closed by peer" in text or kind.startswith("Dist")):
        return TrainingError(f"Another process of this run has stopped, see its message; {kept}.")
    return error
