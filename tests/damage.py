"""What a disk may make of a stored file, byte by byte; each takes the file's bytes and gives other ones."""

from collections.abc import Callable
from pathlib import Path

HARM: dict[str, Callable[[bytes], bytes]] = {
    "nothing is left": lambda _: b"",
    "cut in the meta information": lambda content: content[:180],
    "cut at the end": lambda content: content[:-50],
    "zeros at the beginning": lambda content: bytes(200) + content[200:],
    "other bits in the meta information": lambda content: _flipped(content, 140, 300),
    "one other bit at the end": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
}


def harm(path: Path, kind: str) -> None:
    """Change a stored file as `kind` of HARM says."""
    path.chmod(0o644)  # the store makes its files read-only
    path.write_bytes(HARM[kind](path.read_bytes()))


def _flipped(content: bytes, start: int, stop: int) -> bytes:
    return content[:start] + bytes(255 - byte for byte in content[start:stop]) + content[stop:]
