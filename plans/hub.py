"""Whether the Hugging Face Hub can be reached, found out in seconds instead of minutes."""

from __future__ import annotations

from functools import cache

TIMEOUT_S = 4.0


@cache
def reachable() -> bool:
    """Whether the Hub answers one request, which is sent once per process.

    huggingface_hub itself retries every file for half a minute before it gives up. If
    HF_HUB_OFFLINE is set, no request is sent and the result is False.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception as error:  # the client's classes of errors changed between its releases
        if isinstance(error, MemoryError):
            raise
        return False
    return True


def split_revision(name: str) -> tuple[str, str | None]:
    """``org/name`` and ``revision`` of ``org/name@revision``; the revision may be None.

    Example:
        >>> from tpcal.plans.hub import split_revision
        >>> split_revision("org/name@v1"), split_revision("org/name")
        (('org/name', 'v1'), ('org/name', None))
    """
    name, _, revision = name.partition("@")
    return name, revision or None
