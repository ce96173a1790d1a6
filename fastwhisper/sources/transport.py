"""HTTP requests to the Hub: bounded retries, resumed transfers, errors translated into ours.

This module imports the Hugging Face client, and uses its session, headers and error classes. It
does not use the client's file transfer: that one drops what it has when it is interrupted, sleeps
as long as a server demands, never compares a checksum, and can't be stopped between chunks.
"""

from __future__ import annotations

import errno
import importlib
import logging
import re
import time
from contextlib import contextmanager
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from huggingface_hub import constants, errors, get_session, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is lazy

from fastwhisper.errors import HubUnavailableError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["USER_AGENT", "append_rest", "retry", "translate_errors"]

T = TypeVar("T")

USER_AGENT: Final = "fastwhisper"

BACKOFF_S: Final = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try. After the last one the error is raised."""

PATIENCE_S: Final = 20.0
"""Longest pause that a server can demand, in seconds."""

_CHECK_S: Final = 0.05
"""Seconds between two calls of `check` while pausing."""

_PROGRESS_BYTES: Final = 1 << 20
"""A try that transfers at least this many bytes resets the count of tries: a bad connection may
interrupt a large download many times."""

_RETRIED: Final = frozenset({408, 429, 502, 503, 504})
"""HTTP statuses of a server that is busy."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of errors of a disk that is full."""

_logger = logging.getLogger("fastwhisper")


def _import_http() -> Any:
    """Import the client's HTTP library: httpx, or httpx2 for newer clients."""
    base = next(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])


_http: Final[Any] = _import_http()


def retry(ask: Callable[[], T], check: Callable[[], None]) -> T:
    """Repeat a request until it succeeds, or fails in a way that another try would not mend.

    Args:
        ask: The request.
        check: Called before each try and while pausing. It may raise to stop.

    Returns:
        What the request returns.

    Raises:
        HfHubHTTPError: The Hub refuses, or is still busy after the last try.
    """
    tries = 0
    while True:
        check()
        try:
            return ask()
        except _http.HTTPError as error:
            _pause(error, tries, check)
            tries += 1


def append_rest(
    out: IO[bytes],
    url: str,
    size_bytes: int,
    *,
    on_size: Callable[[int], object],
    check: Callable[[], None],
) -> None:
    """Download the rest of a file, and append it.

    Args:
        out: The partial file, open for appending. It holds the beginning, or nothing.
        url: The file's URL.
        size_bytes: The file's length. `out` gets longer only if the server sends more.
        on_size: Called with the length of `out` after each chunk.
        check: Called between chunks. It may raise to stop.

    Raises:
        HfHubHTTPError: The Hub refuses, or is still busy after the last try.
    """
    tries = 0
    mark = out.tell()
    while out.tell() < size_bytes:
        try:
            _stream(out, url, size_bytes, on_size, check)
            error: Exception = _http.RemoteProtocolError("the file ended too early")
        except _http.HTTPError as caught:
            error = caught
        if out.tell() >= size_bytes:
            return
        if out.tell() - mark >= _PROGRESS_BYTES:
            tries = 0
            mark = out.tell()
        _pause(error, tries, check)
        tries += 1


def _stream(
    out: IO[bytes],
    url: str,
    size_bytes: int,
    on_size: Callable[[int], object],
    check: Callable[[], None],
) -> None:
    """Request the rest of a file once, and append what is sent."""
    check()
    # A compressed answer would have another length than the file.
    headers = build_hf_headers(library_name=USER_AGENT) | {"Accept-Encoding": "identity"}
    offset = out.tell()
    if offset:
        headers["Range"] = f"bytes={offset}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        sent = response.headers.get("Content-Range", "")
        if offset and not sent.startswith(f"bytes {offset}-"):
            # This server ignores ranges and sends the whole file.
            out.seek(0)
            out.truncate()
        for chunk in response.iter_bytes():
            check()
            out.write(chunk)
            if out.tell() > size_bytes:
                return
            on_size(out.tell())


def _pause(error: Exception, tries: int, check: Callable[[], None]) -> None:
    """Wait before another try, or raise the error if there is none."""
    if tries >= len(BACKOFF_S) or not _is_temporary(error):
        raise error
    pause_s = max(BACKOFF_S[tries], min(_read_pause_s(error), PATIENCE_S))
    _logger.info("%s; trying again in %g s", error, pause_s)
    end_s = time.monotonic() + pause_s
    while (left_s := end_s - time.monotonic()) > 0:
        check()
        time.sleep(min(left_s, _CHECK_S))


def _is_temporary(error: Exception) -> bool:
    """Return whether another try may succeed: the server is busy, or the connection was cut."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in _RETRIED
    # A host that can't be reached is not tried again: the user would wait for seconds.
    unreachable = (_http.ConnectError, _http.ConnectTimeout, _http.ProxyError)
    return isinstance(error, _http.TransportError) and not isinstance(error, unreachable)


def _read_pause_s(error: Exception) -> float:
    """Read from a response the pause that its server demands, in seconds."""
    if not isinstance(error, errors.HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    asked = re.fullmatch(r"\s*(\d{1,6})\s*", headers.get("Retry-After", ""), re.ASCII)
    # The Hub's own form is '"api";r=0;t=55'.
    asked = asked or re.search(r";\s*t\s*=\s*(\d{1,6})", headers.get("RateLimit", ""), re.ASCII)
    return float(asked[1]) if asked else 0.0


@contextmanager
def translate_errors(repo: str, revision: str) -> Iterator[None]:
    """Translate the client's errors into ours. What `check` raises is left as it is.

    Raises:
        ModelNotFoundError: The revision does not exist, or the Hub does not allow the name.
        HubUnavailableError: The Hub can't be reached, or refuses.
        OSError: The disk is full, or the cache can't be written.
    """
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            repo, f"the repository has no branch, tag or commit {revision!r}"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(repo, f"the Hub does not allow this name ({error})") from error
    except errors.HfHubHTTPError as error:
        raise HubUnavailableError(repo, _refusal(error)) from error
    except _http.TimeoutException as error:
        raise HubUnavailableError(
            repo, f"{constants.ENDPOINT} did not answer in time: try again, or give a directory"
        ) from error
    except (_http.HTTPError, _http.InvalidURL, errors.OfflineModeIsEnabled) as error:
        raise HubUnavailableError(
            repo,
            f"{constants.ENDPOINT} can't be reached ({error or type(error).__name__}): "
            "check the network, or give a directory",
        ) from error
    except HubUnavailableError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        advice = "set HF_HOME to a directory that can be written"
        if error.errno in _FULL:
            advice = "free some space, or set HF_HOME to another disk"
        # It stays an OSError with its number: the disk is full, and the Hub works.
        detail = f"{error.strerror}: {repo} can't be stored; {advice}"
        raise OSError(error.errno, detail, error.filename) from error


def _refusal(error: errors.HfHubHTTPError) -> str:
    """Return what an HTTP status means, and what to do."""
    status = error.response.status_code
    said = error.server_message or "no reason given"
    if isinstance(error, errors.GatedRepoError):
        return f"access to it is restricted ({said}): accept its terms on the Hub, and set HF_TOKEN"
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return f"the Hub refused the credentials ({said}): check HF_TOKEN, or unset it"
        case HTTPStatus.FORBIDDEN:
            return f"the Hub forbids access ({said}): check what HF_TOKEN may read"
        case HTTPStatus.NOT_FOUND:
            return f"a listed file is not there ({error.response.url}): try again"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return f"the Hub demands fewer requests ({said}): wait a while, or set HF_TOKEN"
        case _:
            return f"the Hub answered with status {status} ({said}): try again later"
