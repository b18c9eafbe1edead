"""Removal of credentials from text for files, screens and logs, and of local folders from paths.

A secret is recognised in two ways. One is its form: the password in a URL, ``password=…``, a token
of a known kind. The other is its value, known from a URL that the user typed or from the
environment; then it is also found if a library repeats only a part of it.
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
"""Least length of a password that is hidden outside its URL; shorter ones are parts of words."""
SHORTEST_OF_VARIABLE = 6
"""Least length of a secret environment variable, because ``1`` or ``true`` is no secret."""
_LONG = 12
"""Least length of a secret that is also hidden inside a longer word."""
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
    """The text with ``***`` instead of every credential.

    All values in the query of a URL are hidden, because each may be a token, and so is a name
    before ``@`` without a password.

    Args:
        text: Any text.
        typed: Words that the user typed, e.g. URLs; their secrets are hidden in the whole text.
        environ: Environment whose secret variables are hidden too; None: that of the process.
    """
    found = {*_typed(typed), *_variables(os.environ if environ is None else environ)}
    text = _URL.sub(lambda url: f"{url['scheme']}://{_place(url['rest'])}", text)
    for secret in sorted(found, key=len, reverse=True):
        text = _pattern(secret).sub(HIDDEN, text)
    return _NAMED.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, text))


def redacted_data(data: Any) -> Any:
    """Plain data in which every text is `redacted`."""
    if isinstance(data, str):
        return redacted(data)
    if isinstance(data, Mapping):
        return {key: redacted_data(value) for key, value in data.items()}
    return [redacted_data(value) for value in data] if isinstance(data, list) else data


def without_machine(word: str, environ: Mapping[str, str] = os.environ) -> str:
    """A word of a command line without the local folders of its path.

    A path inside the working folder becomes relative, and one inside the home folder begins with
    ``~``. Of any other path, a digest replaces the folder and the last part is kept.
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
    """The redacted part of a URL after ``://``.

    A password may contain '@', '/' and '?', although it should not.
    """
    query = _QUERY.search(rest)
    place, asked = (rest[: query.start()], rest[query.start() :]) if query else (rest, "")
    if "@" in asked:
        return HIDDEN  # the end of the password cannot be determined
    userinfo, at, host = place.rpartition("@")
    user, _, password = userinfo.partition(":")
    if at and (password or "/" not in userinfo):
        place = f"{user}:{HIDDEN}@{host}" if password else f"{HIDDEN}@{host}"
    return re.sub(r"\?.*", f"?{HIDDEN}", place) + re.sub(r"=[^&#]*", f"={HIDDEN}", asked)


def _typed(words: Iterable[str]) -> Iterator[str]:
    """Yields the secrets of URLs and connection strings as written, decoded, and in parts."""
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
