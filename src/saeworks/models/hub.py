"""The hub client, made quiet and quick to give up: what goes wrong is said in one sentence by whoever called it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

# Bad gateway, service unavailable, gateway timeout: the client repeats requests that are answered like this.
_GATEWAY_ERRORS = (502, 503, 504)


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


@contextmanager
def offline_unless_reachable() -> Generator[None]:
    """The hub client's offline mode inside the block, unless the hub answers one request now.

    Without a network the client would repeat its requests with growing pauses, for half a minute. In its offline mode
    (what ``HF_HUB_OFFLINE=1`` sets from outside) it asks nobody: what is in its cache is read, all else fails at once.
    The request goes to ``HF_ENDPOINT``, through the client's own session and its proxies, and waits at most
    ``HF_HUB_ETAG_TIMEOUT`` seconds. The mode belongs to the process: other threads see it while the block runs.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True  # pyright: ignore[reportConstantRedefinition]
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False  # pyright: ignore[reportConstantRedefinition]


def _answers() -> bool:
    """Whether the hub answers. An error page is an answer, unless it comes from a gateway that cannot reach the hub."""
    from huggingface_hub import constants, get_session

    try:
        response = get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # refused, unknown host, timeout, no certificate, broken proxy: the next request would fail alike
        return False
    return response.status_code not in _GATEWAY_ERRORS
