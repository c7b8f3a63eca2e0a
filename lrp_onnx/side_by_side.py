"""Batches worked on side by side: threads that share torch's cores, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_WORKERS = 8  # of many cores, some work on the same batch: Python itself runs one thread at a time


@contextmanager
def sharing_cores(workers: int) -> Iterator[None]:
    """Inside, torch's operations take an equal share of the threads that it had, one for each of the workers.

    One thread a batch has nobody to wait for at the end of every operation. It takes less time than two threads a batch
    on two quiet cores, and a third where something else wants a core too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """What `work` makes of each item, in order; so many items are worked on at a time, inside `sharing_cores`.

    One more result may wait while the caller is busy with the one before, so that memory does not grow with the items.
    """
    waiting: deque[Future[Result]] = deque()
    share = torch.get_num_threads()  # a thread starts with all cores otherwise, as far as oneDNN is concerned
    with ThreadPoolExecutor(workers, "work", torch.set_num_threads, (share,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Turns:
    """Lets threads that work on numbered items, from 0, do a part of that work in the order of the items."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._next, self._passed = 0, set[int]()  # all before `_next` had their turn, and those beyond it

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Wait until all items before have had their turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._next >= number)
        with self.passing(number):
            yield

    @contextmanager
    def passing(self, number: int) -> Iterator[None]:
        """The next item may have its turn at the end, also when this one failed before it had its own."""
        try:
            yield
        finally:
            with self._changed:
                if number >= self._next:
                    self._passed.add(number)
                while self._next in self._passed:
                    self._passed.remove(self._next)
                    self._next += 1
                self._changed.notify_all()
