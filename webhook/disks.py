"""Whether what is on a disk survives a restart, as far as the system tells.

Source of the format: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = frozenset(("tmpfs", "ramfs", "devtmpfs"))
LAYERS = frozenset(("overlay", "aufs", "fuse.fuse-overlayfs"))
"""What a container's own files lie on: gone with the container."""
NETWORK = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "beegfs", "afs"))
NETWORK |= {"fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.juicefs", "fuse.ceph-fuse"}
FREE_MIN_BYTES = 200 * 1024 * 1024
_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Worry:
    """What is wrong with the place of a file, and what to do about it."""

    text: str
    hint: str


@dataclass(frozen=True)
class Mount:
    """Where a file system begins, and what it is."""

    folder: str
    kind: str


def worries(path: Path, *, platform: str = "", mounts: Path | None = None) -> list[Worry]:
    """What speaks against keeping a ledger there. `platform`: whose container this is, if it is known to be
    one; its disk is its own then, but for volumes. Raises: OSError.
    """
    folder = _existing(path.resolve())
    mount = mount_of(folder, mounts or MOUNTS)
    found = _place_worries(mount, platform) if mount else []
    free = shutil.disk_usage(folder).free
    if free < FREE_MIN_BYTES:
        found.append(
            Worry(
                text=f"only {free // _MIB} MiB are free on its disk",
                hint=f"Make room in {folder}; the ledger needs some 1 GiB for a million objects.",
            )
        )
    return found


def mount_of(folder: Path, mounts: Path = MOUNTS) -> Mount | None:
    """The file system that a folder is on; None where the system does not tell."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    known = [mount for line in lines if (mount := _mount(line))]
    holding = [mount for mount in known if folder.is_relative_to(mount.folder)]
    # of two at the same place, the later one hides the other
    return max(enumerate(holding), key=lambda each: (len(each[1].folder), each[0]))[1] if holding else None


def _mount(line: str) -> Mount | None:
    fields, _, kinds = line.partition(" - ")
    parts = fields.split(" ")
    if len(parts) < 5 or not kinds:
        return None
    folder = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), parts[4])
    return Mount(folder, kinds.split(" ")[0])


def _place_worries(mount: Mount, platform: str) -> list[Worry]:
    if mount.kind in NETWORK:
        return [
            Worry(
                text=f"it is on a network file system ({mount.kind}), on which SQLite's locks do not hold",
                hint="Put it on a disk of this machine, or use PostgreSQL (docs/FLEET.md).",
            )
        ]
    if mount.kind in IN_MEMORY:
        return [Worry(text=f"it is in memory ({mount.kind}) and gone after a restart", hint=_VOLUME)]
    is_container = bool(platform) or mount.kind in LAYERS
    if is_container and mount.folder == "/":
        where = f"{platform} container" if platform else "container"
        text = f"it is on the {where}'s own disk, which is gone with the {where}"
        return [Worry(text=text, hint=_VOLUME)]
    return []


_VOLUME = (
    "Attach a volume and name a file on it (DATABASE_URL=sqlite:////data/replicator.db for a volume at "
    "/data), or use PostgreSQL."
)


def _existing(path: Path) -> Path:
    """The folder of a file, or the nearest one above it that is there."""
    return next(folder for folder in path.parents if folder.is_dir())
