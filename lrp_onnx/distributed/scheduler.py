"""A Dask scheduler: reached or started, given tasks, asked how far they are."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrp_onnx.converters.factory import LOADED, load_module
from lrp_onnx.errors import DataError, LrpOnnxError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

Report = Callable[[int], None]
_PATIENCE = "30s"  # for a scheduler to answer
_SILENCE = 3  # seconds without an answer, after which a line says what is waited for
_MOMENT = 0.3  # seconds between two looks at how far the work is


@contextmanager
def connect(scheduler: str) -> Iterator[Client]:
    """A client of a scheduler; one that was started here ends with the block.

    Parameters
    ----------
    scheduler : str
        "local:N" or an address such as "tcp://host:8786".

    Raises
    ------
    DataError
        When Dask is not installed, the text is neither, or nobody answers.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise DataError("--scheduler needs a package: pip install 'lrp-onnx[cluster]'") from error
    local = re.fullmatch(r"local:([1-9]\d*)", scheduler)
    if local is None and not re.fullmatch(r"\w+://.+", scheduler):
        raise DataError(f"--scheduler {scheduler}: expected local:N, for N processes, or an address, tcp://HOST:PORT")
    if local is None:
        try:
            with _saying_so(f"waiting for {scheduler} to answer, at most {_PATIENCE}"):
                with ThreadPoolExecutor(1) as thread:  # where no event loop runs, as one does in a notebook
                    thread.submit(asyncio.run, _answer(scheduler)).result()
                client = Client(scheduler, timeout=_PATIENCE)
        except OSError as error:  # TimeoutError, too
            reason = str(error) or f"for {_PATIENCE}"
            raise DataError(
                f"--scheduler {scheduler}: nobody answers there ({reason}); expected the address that dask scheduler "
                "prints as it starts, not that of its dashboard"
            ) from error
        except ValueError as error:  # a protocol that Dask does not speak, or no port
            raise DataError(
                f"--scheduler {scheduler}: no address of a Dask scheduler ({error}); expected tcp://HOST:PORT"
            ) from error
        with client:
            yield client
        return
    count = int(local[1])
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {f"{library}_NUM_THREADS": threads for library in ("OMP", "MKL", "OPENBLAS")}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=count, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _saying_so(text: str) -> Iterator[None]:
    """Say what is waited for, should the block take long."""
    timer = threading.Timer(_SILENCE, logger.warning, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


async def _answer(address: str) -> None:
    """Ask the scheduler who it is. A client would wait for ever where something else listens, such as its dashboard."""
    from dask.utils import parse_timedelta
    from distributed.core import rpc
    from distributed.security import Security

    async with asyncio.timeout(parse_timedelta(_PATIENCE)):
        async with rpc(address, connection_args=Security().get_connection_args("client")) as scheduler:
            await scheduler.identity()


def check_shared(client: Client, paths: Sequence[Path]) -> None:
    """See to it that the workers see what this process reads and writes, before they work for hours.

    Raises
    ------
    DataError
        When a worker does not see a path, or there is no worker.
    """
    _wait_for_worker(client)
    for path in paths:
        for worker, seen in client.run(os.path.exists, str(path), on_error="ignore").items():
            if not seen:
                raise DataError(
                    f"worker {worker} does not see {path}; data and output must lie on a file system that all machines "
                    "share, under the same paths"
                )


def _wait_for_worker(client: Client) -> None:
    from dask.utils import parse_timedelta

    address = client.scheduler_info()["address"]
    try:
        with _saying_so(f"waiting for a worker of {address}, at most {_PATIENCE}"):
            client.wait_for_workers(1, timeout=parse_timedelta(_PATIENCE))
    except TimeoutError as error:
        raise DataError(f"{address} has no workers; start some, with: dask worker {address} --nthreads 1") from error


def run_parts(
    client: Client,
    function: Callable[[Any, Any, Report], Any],
    common: Any,
    parts: Sequence[Any],
    progress: Callable[[int], None] | None = None,
) -> Iterator[Any]:
    """``function(common, part, report)`` of every part on the workers; the results in the order of the parts.

    What is common to all parts goes to each worker once, and modules that `load_module` loaded here are loaded there.
    The part of a worker that is lost is done again by another.

    Parameters
    ----------
    client : distributed.Client
    function : callable
        At the top of a module. Calls ``report(done)`` as samples of its part are done.
    progress : callable, optional
        Called with the samples that are done in all parts together.

    Raises
    ------
    LrpOnnxError
        What a part raised; DataError when there are no workers, or they were lost again and again.
    """
    from distributed import CancelledError, KilledWorker, wait
    from distributed.comm import CommClosedError

    _wait_for_worker(client)
    topic, done = f"lrp-onnx-{uuid.uuid4().hex}", dict.fromkeys(range(len(parts)), 0)

    def note(event: tuple[float, dict[str, int]]) -> None:  # in a thread of the client
        done[event[1]["part"]] = event[1]["done"]

    client.subscribe_topic(topic, note)
    try:
        shared = client.scatter(common, broadcast=True)
        futures = deque(
            client.submit(_run_part, function, shared, part, topic, number, tuple(LOADED), pure=False)
            for number, part in enumerate(parts)
        )
        while futures:
            with suppress(TimeoutError):
                wait(futures[0], timeout=_MOMENT)
            if progress is not None:
                progress(sum(done.values()))
            if futures[0].done():
                yield futures.popleft().result()
    except LrpOnnxError:
        raise
    except KilledWorker as error:
        raise DataError(
            f"workers were lost again and again, {error.last_worker.address} last, perhaps for want of memory; take a "
            "smaller --batch-size or larger machines, and go on with --resume"
        ) from error
    except (CancelledError, CommClosedError, TimeoutError, OSError) as error:
        raise DataError(f"the scheduler was lost ({error}); what is done is kept, go on with --resume") from error
    except Exception as error:  # whatever went wrong on a worker, such as a package that it lacks
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"a worker stopped with {reason}; has it the same lrp-onnx, and sees the same files?"
        ) from error
    finally:
        client.unsubscribe_topic(topic)


def _run_part(
    function: Callable[[Any, Any, Report], Any], common: Any, part: Any, topic: str, number: int, modules: Sequence[str]
) -> Any:
    from distributed import get_worker

    for name in modules:
        if name not in LOADED:
            load_module(name)
    worker = get_worker()
    return function(common, part, lambda done: worker.log_event(topic, {"part": number, "done": done}))
