"""Whether the Hugging Face Hub can be asked at all, found out in seconds instead of minutes."""

from __future__ import annotations

from functools import cache

TIMEOUT_S = 4.0


@cache
def reachable() -> bool:
    """True where one request to the Hub is answered; asked once per process.

    huggingface_hub itself retries every file for half a minute before it gives up. With
    HF_HUB_OFFLINE set nothing is asked.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception as error:  # the client's own tree of errors, which changed between releases
        if isinstance(error, MemoryError):
            raise
        return False
    return True


def split_revision(name: str) -> tuple[str, str | None]:
    """``org/name`` and ``revision`` of ``org/name@revision``; None without one."""
    name, _, revision = name.partition("@")
    return name, revision or None
