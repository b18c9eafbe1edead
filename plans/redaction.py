"""Text without credentials, as it may reach a file, a screen or a log; and paths without machines.

A secret is found in two ways. Its shape gives it away: the password in a URL, ``password=…``, a
token of a known kind. Or its value is known, from a URL that the user typed or from the
environment, so that it is found too where a library repeats a part of it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
SHORTEST = 3
"""Characters of a password that is looked for outside its URL; shorter ones are parts of words."""
SHORTEST_OF_VARIABLE = 6
"""The same of an environment variable, as ``1`` or ``true`` is none."""
_LONG = 12
"""Characters from which on a secret is also hidden inside a longer word."""
_SECRET = (
    r"(?:password|passwd|passphrase|pwd|secret|credentials?|token|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|signature|sig)"
)
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<rest>[^\s\"'<>]+)")
_QUERY = re.compile(r"[?#](?=[^=?#/@]*=)")
_NAMED = re.compile(
    rf"(?i)((?<![a-z])(?:[a-z]+[_-])*(?:ssl|pg)?{_SECRET}(?:\s*=|[\"']\s*[:=])\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s&,;\"')]+)"
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{20,}|AKIA[0-9A-Z]{16})|(?<=Bearer )[^\s\"'\\]+|(?<=Basic )[A-Za-z0-9+/=]{8,}"
)
_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:password|passwd|passphrase|pass|pwd|secret|key|token|credentials?)(?:_|$)"
    r"|password|apikey"
)
_PAIR = re.compile(rf"(?i)(?:^|[?&#;\s])[\w.-]*{_SECRET}=('[^']*'|[^&#]*)")
_ABSOLUTE = re.compile(r"^(--[\w-]+=|-[A-Za-z])?((?:/|[A-Za-z]:[\\/]).*)$", re.DOTALL)


def redacted(text: str, *typed: str, environ: Mapping[str, str] | None = None) -> str:
    """The text with ``***`` in the place of every credential.

    The values in the query of a URL are all hidden, as each may be a token, and so is a name that
    stands before ``@`` without a password.

    Args:
        text: Anything.
        typed: Words of the user, as URLs; what is secret in them is hidden wherever it stands.
        environ: Whose secret variables are hidden too; None: the process's own.
    """
    found = {*_typed(typed), *_variables(os.environ if environ is None else environ)}
    text = _URL.sub(lambda url: f"{url['scheme']}://{_place(url['rest'])}", text)
    for secret in sorted(found, key=len, reverse=True):
        text = _pattern(secret).sub(HIDDEN, text)
    return _NAMED.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, text))


def redacted_data(data: Any) -> Any:
    """Plain data with every text in it `redacted`."""
    if isinstance(data, str):
        return redacted(data)
    if isinstance(data, Mapping):
        return {key: redacted_data(value) for key, value in data.items()}
    return [redacted_data(value) for value in data] if isinstance(data, list) else data


def without_machine(word: str, environ: Mapping[str, str] = os.environ) -> str:
    """A word of a command line whose path says nothing of the machine.

    A path below this folder becomes relative, one below the home folder begins with ``~``; of any
    other only its name is kept, behind a digest of its folder.
    """
    found = _ABSOLUTE.match(word)
    if not found:
        return word
    option, path = found[1] or "", found[2]
    for place, short in ((os.getcwd(), "."), (environ.get("HOME", ""), "~")):
        if len(place) > 1 and path.rstrip(os.sep) == place.rstrip(os.sep):
            return option + short
        inside = place.rstrip(os.sep) + os.sep
        if len(place) > 1 and path.startswith(inside):
            rest = path.removeprefix(inside)
            return option + (rest if short == "." else f"{short}/{rest}")
    folder, name = os.path.split(path.rstrip("/\\"))
    return f"{option}[{hashlib.sha256(folder.encode()).hexdigest()[:8]}]/{name}"


def _place(rest: str) -> str:
    """What follows ``://``. A password may hold '@', '/' and '?' although it should not."""
    query = _QUERY.search(rest)
    place, asked = (rest[: query.start()], rest[query.start() :]) if query else (rest, "")
    if "@" in asked:
        return HIDDEN  # nobody can tell where the password ends
    userinfo, at, host = place.rpartition("@")
    user, _, password = userinfo.partition(":")
    if at and (password or "/" not in userinfo):
        place = f"{user}:{HIDDEN}@{host}" if password else f"{HIDDEN}@{host}"
    return re.sub(r"\?.*", f"?{HIDDEN}", place) + re.sub(r"=[^&#]*", f"={HIDDEN}", asked)


def _typed(words: Iterable[str]) -> Iterator[str]:
    """Secrets of URLs and connection strings, as written, decoded, and in parts."""
    for word in words:
        rest = word.partition("://")[2]
        found = [match[1].strip("'") for match in _PAIR.finditer(word)]
        user, colon, password = rest.rpartition("@")[0].partition(":")
        if colon:
            found.append(password)
        elif "/" not in user and len(user) >= _LONG:
            found.append(user)
        for secret in found:
            forms = {secret, unquote(secret), unquote_plus(secret)}
            parts = {part for form in forms for part in re.split(r"[@:/?#&=\s]", form)}
            yield from (one for one in forms | parts if len(one) >= SHORTEST)


def _variables(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if "://" in value and _URL.fullmatch(value):
            yield from _typed([value])
        elif len(value) >= SHORTEST_OF_VARIABLE and _is_secret(name):
            yield value.strip()


@cache
def _is_secret(name: str) -> bool:
    return name != "PWD" and _VARIABLE.search(name) is not None


def _pattern(secret: str) -> re.Pattern[str]:
    whole = re.escape(secret)
    return re.compile(whole if len(secret) >= _LONG else rf"(?<!\w){whole}(?!\w)")
