"""A profile and the folder that it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tpcal.plans.plan_names import PLAN, is_preset
from tpcal.workflow.step_settings import OUT

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile


class StoredProfile(NamedTuple):
    """A profile and its folder, in which searches keep what they measured."""

    folder: Path
    profile: Profile

    @classmethod
    def of(cls, profile: StoredProfile | Path | str | None) -> StoredProfile:
        """The stored profile itself, or the one that `load_profile` reads."""
        return profile if isinstance(profile, StoredProfile) else load_profile(profile)

    @property
    def study(self) -> Path:
        """The journal file in which searches keep what they measured."""
        from tpcal.calibrate.profile import STUDY

        return self.folder / STUDY

    @property
    def warnings(self) -> tuple[str, ...]:
        """What calibration could not see, one sentence each."""
        from tpcal.calibrate.drop_all_depth import blind_spots

        return tuple(blind_spots(self.profile))


def is_profile(word: str) -> bool:
    """Whether a word of a command line names a profile, or a folder of profiles, and no plan."""
    from tpcal.calibrate.profile import PROFILE

    path = Path(word)
    if path.is_dir() and not is_preset(word):
        return (path / PROFILE).is_file() or not (path / PLAN).is_file()
    return path.name == PROFILE or path == Path(OUT)


def load_profile(path: Path | str | None = None) -> StoredProfile:
    """Reads the profile in a folder, or the newest one below it.

    Example:
        >>> import tpcal
        >>> folder, profile = tpcal.load_profile("tpcal-out")
        >>> profile.model.n_layers
        8

    Args:
        path: Folder of a profile, its ``profile.yaml``, or a folder that collects profiles; None
            takes ``tpcal-out``.

    Raises:
        UsageError: There is no profile, or it is unfinished or damaged.
    """
    from tpcal.calibrate import profile as profiles

    path = Path(path or OUT)
    if path.name == profiles.PROFILE:
        path = path.parent
    folder = profiles.newest(path)
    return StoredProfile(folder, profiles.load(folder))
