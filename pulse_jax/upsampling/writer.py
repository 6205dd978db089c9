"""A thread that writes files, so that the search needn't wait for disks and encoders."""

import queue
import threading
from collections.abc import Callable
from typing import Any

WAITING = 256  # tasks at most: then the search waits, so that memory stays


class Writer:
    """Calls functions one by one, in the order in which they are given. A context.

    At its end all is done. What a function raises is raised where one next waits, and ends the
    work: what can be told of a picture, `results.save` keeps from being raised.
    """

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[Any, ...] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """`function(*arguments)`, later. What it is given must not change any more."""
        self._tasks.put((function, *arguments))

    def wait(self) -> None:
        """Until all that was given has been done."""
        self._tasks.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, *arguments = task
            try:
                if self._error is None:
                    function(*arguments)
            except BaseException as error:  # told by `wait`
                self._error = error
            finally:
                self._tasks.task_done()

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._tasks.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
