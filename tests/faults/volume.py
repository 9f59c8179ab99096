"""A volume of its own that can lose its power: ext4 in an image file on a loop device, mounted for root.

The cut is the file system's own: FS_IOC_SHUTDOWN without a flush of the journal. What was not fsynced by
then is gone after the next mount, as after a power cut; what was fsynced has to be there.
"""

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FS_IOC_SHUTDOWN = 0x8004587D
NOLOGFLUSH = 2
UNMOUNT_WITHIN_S = 60.0
MNT_DETACH = 2


class NoVolume(Exception):
    """This machine does not let us make, mount and cut a volume; the message says what is missing."""


class Volume:
    """An ext4 file system in an image file, mounted at `root` between `mount` and `unmount`."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self.image = folder / "volume.ext4"
        self.root = folder / "volume"
        self.root.mkdir()
        with self.image.open("wb") as image:
            image.truncate(size_mb << 20)
        # Lazy initialisation would write in the background, between our own writes.
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.image))

    def mount(self) -> None:
        """Mount the image; after a cut this replays the journal."""
        run("mount", "-o", "loop", str(self.image), str(self.root))

    def cut(self) -> None:
        """Cut the power: nothing reaches the image from now on, and what was not flushed never will."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Unmount; waits for the killed processes to let go of their files."""
        libc = ctypes.CDLL(None, use_errno=True)
        deadline = time.monotonic() + UNMOUNT_WITHIN_S
        while libc.umount2(str(self.root).encode(), 0) != 0:
            code = ctypes.get_errno()
            if code != errno.EBUSY or time.monotonic() > deadline:
                raise OSError(code, f"umount: {os.strerror(code)}", str(self.root))
            time.sleep(0.01)

    def abandon(self) -> None:
        """Unmount whatever still holds it; for the end of a test that failed."""
        ctypes.CDLL(None).umount2(str(self.root).encode(), MNT_DETACH)


@contextmanager
def new_volume(folder: Path, size_mb: int = 256) -> Iterator[Volume]:
    """Make a volume, not yet mounted; raises NoVolume where this machine does not allow it."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = Volume(folder, size_mb)
    try:
        _probe(volume)
        yield volume
    finally:
        if volume.root.is_mount():
            volume.abandon()


def _probe(volume: Volume) -> None:
    """Show once that a cut loses what was not flushed and keeps what was: otherwise nothing is proven."""
    volume.mount()
    kept, lost = volume.root / "kept", volume.root / "lost"
    with kept.open("wb") as file:
        file.write(b"kept")
        file.flush()
        os.fsync(file.fileno())
    os.sync()
    lost.write_bytes(b"lost")
    try:
        volume.cut()
    except OSError as error:
        volume.unmount()
        raise NoVolume(f"ext4 refuses FS_IOC_SHUTDOWN here ({error.strerror})") from error
    volume.unmount()
    volume.mount()
    if lost.exists() or kept.read_bytes() != b"kept":
        raise NoVolume("a cut of the volume loses nothing here, so it proves nothing")
    kept.unlink()
    volume.unmount()


@contextmanager
def memory_volume(point: Path, options: str) -> Iterator[Path]:
    """Mount a small volume in memory, which can be filled; raises NoVolume where that is not allowed."""
    point.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point))
    try:
        yield point
    finally:
        ctypes.CDLL(None).umount2(str(point).encode(), MNT_DETACH)


def run(*command: str) -> None:
    """Run a command of the system; raises NoVolume when it is missing or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True)
    except FileNotFoundError as error:
        raise NoVolume(f"{command[0]} is not installed here") from error
    if done.returncode != 0:
        raise NoVolume(f"{command[0]} does not work here: {done.stderr.strip()[:200]}")
