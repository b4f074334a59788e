"""Threads around the network: while it works on an image, the next one is read and the last one written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class _End:
    """What the thread puts last: the error that ended it, if there was one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterator[T], depth: int = 1) -> Iterator[T]:
    """Runs an iterator in a thread of its own.

    The first item is made by the caller; while he works on it, the thread makes the next. It ends with the iterator,
    or soon after the caller has stopped asking.

    Args:
        items: what is iterated over; from the second item on, its code runs in the thread.
        depth: how many items may wait; with the one that the thread holds, one more is in memory.

    Yields:
        the items, in order; an error of the iterator is raised where it occurred.
    """
    try:
        first = next(items)
    except StopIteration:
        return
    ahead: queue.Queue[T | _End] = queue.Queue(max(1, depth))
    stopped = threading.Event()

    def put(item: T | _End) -> bool:
        while not stopped.is_set():
            try:
                ahead.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:  # it is raised again where the items are taken
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=work, name="agssp-zoo-prefetch", daemon=True)
    thread.start()
    try:
        yield first
        while True:
            item = ahead.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:  # what it reads from is let go now, be it a camera or a thread like this one
            close()


class WriteBehind:
    """Calls a function in a thread of its own, in order. Used with ``with``, whose end waits for the last call.

    An error of the function is raised where the next call is handed over, or at the end; calls after it are left out.

    Args:
        write: the function.
        depth: how many calls may wait; then handing over waits, too.
    """

    def __init__(self, write: Callable[..., None], depth: int = 4) -> None:
        self._write = write
        self._calls: queue.Queue[tuple[Any, ...] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="agssp-zoo-write", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (arguments := self._calls.get()) is not None:
            if self._error is None:
                try:
                    self._write(*arguments)
                except BaseException as error:  # raised again in the caller's thread
                    self._error = error

    def put(self, *arguments: Any) -> None:
        """Hands a call over."""
        if self._error is not None:
            raise self._error
        self._calls.put(arguments)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the last call."""
        self._calls.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error
