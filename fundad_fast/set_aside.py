# SPDX-License-Identifier: Apache-2.0
"""What a folder held, kept inside it until what replaces it has begun.

Inside, so that it also works where the folder is a mounted volume or may not be renamed. One file,
the mark, says whose the content of the folder is: it leaves first and comes back last, so that a
kill at any point leaves either the old content or the new, and never a mixture.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ASIDE = ".replaced"


class OldContent:
    """The old content of a folder, which the caller has locked.

    Args:
        folder: what is to be replaced.
        mark: name of the file without which a folder is not complete.
        stays: names of files that never move.
    """

    def __init__(self, folder: Path, mark: str, stays: frozenset[str]) -> None:
        self.folder, self.mark, self._stays = folder, mark, stays
        self.place = folder / ASIDE

    def __bool__(self) -> bool:
        """Whether there is any; what was let go but for a rest is none."""
        return (self.place / self.mark).exists()

    def put(self) -> None:
        """Set the content of the folder aside."""
        self.let_go()
        self.place.mkdir()
        (self.folder / self.mark).rename(self.place / self.mark)
        for entry in self._entries():
            entry.rename(self.place / entry.name)

    def bring_back(self) -> None:
        """Undo ``put``; what has come since is removed."""
        if (self.folder / self.mark).exists():  # with it goes what tells new content from old
            for entry in self._entries():
                if entry.name != self.mark:
                    _remove(entry)
            (self.folder / self.mark).unlink()
        for entry in self.place.iterdir():
            if entry.name != self.mark:
                if (self.folder / entry.name).exists():
                    _remove(self.folder / entry.name)
                entry.rename(self.folder / entry.name)
        (self.place / self.mark).rename(self.folder / self.mark)
        self.place.rmdir()

    def let_go(self) -> None:
        """Remove it for good."""
        (self.place / self.mark).unlink(missing_ok=True)
        if self.place.exists():
            shutil.rmtree(self.place)

    def _entries(self) -> list[Path]:
        stays = self._stays | {ASIDE}
        return [entry for entry in self.folder.iterdir() if entry.name not in stays]


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
