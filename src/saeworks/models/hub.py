"""The hub client, made quiet: what its retries come to is said in one sentence by whoever called it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet_hub_client() -> Generator[None]:
    """No warnings of the hub client inside the block; without a network it would print one for every retry."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
