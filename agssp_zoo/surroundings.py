"""What surrounds a command and is none of its arguments: signals, closed streams, a full disk; each in words."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP has come; as Ctrl-C, it ends what is at work by way of everybody's ``finally``.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


def endings() -> tuple[signal.Signals, ...]:
    """The signals that ask a process to end: SIGINT, SIGTERM, and SIGHUP where ``nohup`` has not had it ignored."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    heard = () if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else (hangup,)
    return (signal.SIGINT, signal.SIGTERM, *heard)


def exit_code(number: int) -> int:
    """A command's exit code: 128 + the number of the signal that stopped it before its end, as shells have it; 0."""
    return 128 + number if number else 0


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise :class:`Terminated`, so that temporary files go, where Python would end at once.

    A second SIGTERM does end at once. Signals that somebody else handles, or has set to be ignored, and those of a
    thread other than the main one, where Python allows no handlers, keep their meaning.
    """

    def end(number: int, _: FrameType | None) -> None:
        # A terminal that is closed sends SIGHUP twice: its shell does, and the system.
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        raise Terminated(number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [n for n in endings() if n != signal.SIGINT and signal.getsignal(n) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def open_missing_streams() -> None:
    """Opens the standard streams that were closed (``>&-``), into nothing.

    Otherwise the first file that is opened gets the number of one of them, and what libraries say there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as the process lives
            if stream.fileno() == number:  # the system gives the lowest one that is free
                os.set_inheritable(number, True)
            setattr(sys, name, stream)


def in_words(error: OSError | MemoryError) -> str:
    """A failure of the system that nobody has put into words: what it is about, and what to do; empty if unknown."""
    if isinstance(error, MemoryError):
        return f"The memory is not enough ({error or 'no more could be had'}); take a smaller size or batch."
    names = [os.fsdecode(name) for name in (error.filename2, error.filename) if isinstance(name, (str, bytes))]
    where, why = names[0] if names else "", error.strerror or str(error)
    if error.errno in _ROOM:
        return f"{where or 'A file'} cannot be written ({why}); make room, then run the command again."
    if error.errno in _RIGHTS:
        return f"{where or 'A file'} cannot be used ({why}); give another path, or change its permissions."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where or 'A file'} cannot be opened ({why}); allow more, e.g. with `ulimit -n 1024`."
    if error.errno == errno.ENAMETOOLONG:
        return f"{where or 'A path'} cannot be used ({why}); give a shorter one."
    return ""
