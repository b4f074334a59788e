"""Reading ahead in a thread: decoding the next image while the network works on the last one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

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
