"""What a page for a bug report must not show: homes, names of users and hosts, tokens."""

from __future__ import annotations

import os
import pwd
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["build_filter"]

_USER_VARIABLES: Final = ("USER", "LOGNAME", "USERNAME", "SUDO_USER")
_HOST_VARIABLES: Final = ("HOSTNAME", "HOST", "COMPUTERNAME")

_PUBLIC: Final = frozenset(
    {
        *("base", "large", "medium", "small", "tiny", "turbo"),
        *("darwin", "linux", "localhost", "mac", "macos", "python", "root"),
        *("cpu", "cuda", "gpu", "metal", "nvidia"),
        *("fastwhisper", "mlx", "whisper"),
    }
)
"""Words that stand on every page. As the name of a user or a host they tell nothing about them,
and hiding them would make the page unreadable."""

_SECRET_NAME: Final = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
_SHORTEST_SECRET: Final = 6

_FORMS: Final = (
    # A token of the Hub, and what stands before the host of a URL.
    (re.compile(r"\bhf_\w{8,}"), "<token>"),
    (re.compile(r"(?<=://)[^/\s@]+@"), ""),
    # The home of another user.
    (re.compile(r"([/\\](?:home|Users)[/\\])[^/\\\s'\",;:]+"), r"\1<user>"),
    (re.compile(r"[\0-\x1f\x7f-\x9f]"), lambda found: repr(found[0])[1:-1]),
)


def build_filter() -> Callable[[str], str]:
    """Return a function that replaces in a text what a page must not show.

    Control characters, which a terminal would obey, are escaped.
    """
    rules: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
        *((re.compile(re.escape(secret)), "<token>") for secret in _longest_first(_find_secrets())),
        # "/home/ann", and not a part of "/home/anna" or of "/data/home/ann".
        *(
            (re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])"), "~")
            for home in _longest_first(_find_homes())
        ),
        *_FORMS,
        *(
            (re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", re.IGNORECASE), shown)
            for shown, names in (("<user>", _find_users()), ("<host>", _find_hosts()))
            for name in _longest_first(names)
            if len(name) > 1 and name.lower() not in _PUBLIC
        ),
    ]

    def hide(text: str) -> str:
        for pattern, shown in rules:
            text = pattern.sub(shown, text)
        return text

    return hide


def _longest_first(texts: Iterator[str]) -> list[str]:
    return sorted(set(texts), key=len, reverse=True)


def _find_secrets() -> Iterator[str]:
    """Find the values of variables whose names say that they are secret."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            yield value


def _find_homes() -> Iterator[str]:
    """Find the home directory in each form in which a path may begin with it."""
    homes = [os.environ.get("HOME", ""), os.environ.get("USERPROFILE", "")]
    with suppress(KeyError):  # a container's user without an entry
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    for home in homes:
        if Path(home).is_absolute():
            for form in (home.rstrip("/\\"), os.path.normpath(home), os.path.realpath(home)):
                # "/" is the home of some containers' users, and the begin of every path.
                if Path(form) != Path(Path(form).anchor):
                    yield form
                    yield repr(form)[1:-1]  # as messages quote it


def _find_users() -> Iterator[str]:
    yield from (os.environ.get(name, "") for name in _USER_VARIABLES)
    with suppress(KeyError):
        yield pwd.getpwuid(os.getuid()).pw_name


def _find_hosts() -> Iterator[str]:
    names = [socket.gethostname(), *(os.environ.get(name, "") for name in _HOST_VARIABLES)]
    for name in names:
        yield name
        yield name.partition(".")[0]
