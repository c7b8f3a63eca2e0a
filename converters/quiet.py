"""Keep the chatter of exporters (prints, warnings, log lines, C++ messages) away from the user."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what is written meanwhile to this module's logger at debug level."""
    chatter = io.StringIO()
    # TensorFlow reads this when it is first imported; its C++ start-up lines would otherwise be many.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(chatter),
        contextlib.redirect_stderr(chatter),
        _descriptor_to(1, chatter),
        _descriptor_to(2, chatter),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
    if chatter.getvalue():
        logger.debug("written during conversion:\n%s", chatter.getvalue())


@contextlib.contextmanager
def _descriptor_to(number: int, chatter: io.StringIO) -> Iterator[None]:
    """Redirect file descriptor 1 or 2, where C++ code writes past Python's sys.stdout and sys.stderr."""
    try:
        kept = os.dup(number)
    except OSError:  # a process without that stream has nothing to keep quiet
        yield
        return
    stream = sys.__stdout__ if number == 1 else sys.__stderr__
    if stream is not None:
        stream.flush()
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), number)
        try:
            yield
        finally:
            os.dup2(kept, number)
            os.close(kept)
            sink.seek(0)
            chatter.write(sink.read().decode(errors="replace"))
