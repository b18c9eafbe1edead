"""Files on the Hugging Face Hub: read and written, with one sentence for everything that fails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tpcal.plans.errors import RunFailed, UsageError, excerpt

TIMEOUT_S = 4.0
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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


def is_repository(name: str) -> bool:
    """Whether the name has the form of a repository, ``org/name``, without a revision.

    Example:
        >>> from tpcal.plans.hub import is_repository
        >>> is_repository("org/name"), is_repository("./plans/best"), is_repository("plan")
        (True, False, False)
    """
    return _REPOSITORY.fullmatch(name) is not None


def download(repository: str, file: str, revision: str | None = None) -> Path:
    """The path of a file of a repository in the local cache, fetched if it is not there yet.

    If the Hub cannot be reached, the file is taken from the cache as it was fetched last.

    Args:
        repository: ``org/name``.
        file: Name of the file in the repository.
        revision: Branch, tag or commit; None is the main branch.

    Raises:
        UsageError: There is no such repository, revision or file, access to it is not granted, or
            the Hub cannot be reached and the file is not in the cache.
    """
    from huggingface_hub import hf_hub_download

    with _explained(repository, revision, file):
        found = hf_hub_download(
            repository, file, revision=revision, local_files_only=not reachable()
        )
    return Path(found)


def has_file(repository: str, file: str, revision: str | None = None) -> bool:
    """Whether the repository has the file; False if it has no such revision either.

    Raises:
        UsageError: There is no such repository, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(repository, revision, file):
        return bool(HfApi().file_exists(repository, file, revision=revision))


def create(repository: str, *, private: bool | None = None, branch: str | None = None) -> None:
    """Creates a repository and a branch of it, each unless it exists.

    Args:
        repository: ``org/name``.
        private: Whether a new repository is private; None leaves it to the account's settings.
        branch: Branch besides main; None creates none.

    Raises:
        UsageError: Nobody is logged in, or the account may not write there.
        RunFailed: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    _refuse_offline(repository)
    with _explained(repository, branch):
        HfApi().create_repo(repository, private=private, exist_ok=True)
        if branch is not None and branch != "main":
            HfApi().create_branch(repository, branch=branch, exist_ok=True)


def upload(
    repository: str, files: Mapping[str, str], *, message: str, branch: str | None = None
) -> str:
    """Writes text files to a repository in one commit, and returns the commit's address.

    Args:
        repository: ``org/name``, which exists.
        files: Content of each file by name.
        message: The commit's message.
        branch: Branch that is written to; None is main.

    Raises:
        UsageError: Nobody is logged in, or the account may not write there.
        RunFailed: The Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _refuse_offline(repository)
    added = [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    with _explained(repository, branch):
        done = HfApi().create_commit(repository, added, commit_message=message, revision=branch)
    return str(done.commit_url)


def _refuse_offline(repository: str) -> None:
    if not reachable():
        raise RunFailed(
            f"{repository} cannot be written, because {_unreachable()}. Nothing was sent; run "
            "the same again where the Hub can be reached."
        )


def _unreachable() -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return f"the Hub at {constants.ENDPOINT} does not answer"


@contextmanager
def _explained(repository: str, revision: str | None, file: str | None = None) -> Iterator[None]:
    """Turns what the Hub's client raises into one sentence that says how to go on."""
    try:
        yield
    except Exception as error:  # its HTTP client, and so the errors' classes, differ by release
        origin = type(error).__module__
        own = origin.startswith(("huggingface_hub", "http", "requests"))
        if not own and not isinstance(error, OSError):
            raise
        raise UsageError(_reason(error, repository, revision, file)) from error


def _reason(error: Exception, repository: str, revision: str | None, file: str | None) -> str:
    """The sentence; what is more specific comes first, as the classes inherit from each other."""
    from huggingface_hub import errors

    place = repository if revision is None else f"{repository}@{revision}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated, and this account has no access to it. Ask for access on its "
            "page, then log in: hf auth login."
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            f"{file or 'A file'} of {place} is not in the local cache, and {_unreachable()}. "
            f"Where the Hub can be reached run 'tpcal pull {place}', and pass the file."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no branch, tag or commit {excerpt(str(revision))}."
    if isinstance(error, errors.EntryNotFoundError):
        return f"{place} has no {file}. Name a repository or a revision that has one."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"No repository {repository} is on the Hub, or it is private. Check the name, or log "
            "in with an account that may see it: hf auth login."
        )
    status = _status(error)
    if status in (401, 403):
        return (
            f"This account may not do that in {repository}. Log in with a token that may: hf auth "
            "login."
        )
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{place} on the Hub: {excerpt(first, 200)}."


def _status(error: Exception) -> Any:
    return getattr(getattr(error, "response", None), "status_code", None)
