"""A thread that writes files, so that the search needn't wait for disks and encoders."""

import queue
import threading
from collections.abc import Callable
from typing import Any

WAITING = 256  # tasks at most; with more, the search waits, so that memory doesn't grow


class Writer:
    """A context that calls functions one by one, in the order in which they are given.

    When it ends, all are done. If a function raises, no further one is called, and `wait` or the
    end of the context raises the same. `results.save` catches what is a picture's own error.
    """

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[Any, ...] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call `function(*arguments)` later. The arguments must not change until then."""
        self._tasks.put((function, *arguments))

    def wait(self) -> None:
        """Wait until all calls so far are done."""
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
