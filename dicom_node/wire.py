"""What may pass between a process and its limited child: plain values and arrays, never code.

A message is a JSON tree beside its buffers. Nothing that comes back from a child is ever unpickled: bytes
from outside have been through it, and it may do what they say.
"""

import json
import socket
import struct
import time
from typing import Any, Final

import numpy as np

LENGTHS: Final = struct.Struct("<II")  # bytes of the tree, number of buffers
LENGTH: Final = struct.Struct("<Q")  # bytes of one buffer
MAX_TREE_BYTES: Final = 64 * 1024 * 1024
MAX_BUFFERS: Final = 65536
ARRAY_KINDS: Final = "biuf"  # dtype kinds that may pass


class WireClosed(Exception):
    """The other side is gone."""


class WireGarbled(WireClosed):
    """The message is none that a process of ours sends."""


class WireTooLarge(WireClosed):
    """The message is larger than what was allowed."""


class WireTimeout(Exception):
    """The message did not come in time."""


def send(wire: socket.socket, value: object) -> None:
    """Send one message; `value` is made of None, bool, int, float, str, bytes, list, tuple, dict, ndarray."""
    buffers: list[memoryview] = []
    tree = json.dumps(_pack(value, buffers), separators=(",", ":")).encode()
    head = LENGTHS.pack(len(tree), len(buffers)) + b"".join(LENGTH.pack(each.nbytes) for each in buffers)
    wire.sendall(head + tree)
    for each in buffers:
        wire.sendall(each)


def receive(wire: socket.socket, max_bytes: int, deadline: float | None = None) -> Any:
    """Receive one message of at most `max_bytes`, until `deadline` (monotonic seconds).

    Raises
    ------
    WireClosed
        If the other side ended; WireGarbled if it sent no message of ours, WireTooLarge if one too large.
    WireTimeout
        If it did not come in time.
    """
    tree_bytes, count = LENGTHS.unpack(_read(wire, LENGTHS.size, deadline))
    if tree_bytes > min(max_bytes, MAX_TREE_BYTES) or count > MAX_BUFFERS:
        raise WireTooLarge("a message is larger than allowed")
    lengths = [LENGTH.unpack(_read(wire, LENGTH.size, deadline))[0] for _ in range(count)]
    if tree_bytes + sum(lengths) > max_bytes:
        raise WireTooLarge("a message is larger than allowed")
    tree = _read(wire, tree_bytes, deadline)
    buffers = [_read(wire, length, deadline) for length in lengths]
    try:
        return _unpack(json.loads(tree), buffers)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise WireGarbled("a message is not understood") from error


def _pack(value: object, buffers: list[memoryview]) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": _add(memoryview(value).cast("B"), buffers)}
    if isinstance(value, np.ndarray):
        return _pack_array(value, buffers)
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_pack(each, buffers) for each in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _pack(each, buffers) for key, each in value.items()}}
    raise TypeError(f"{type(value).__name__} cannot pass to or from a limited child")


def _pack_array(array: "np.ndarray[Any, Any]", buffers: list[memoryview]) -> object:
    if array.dtype.kind not in ARRAY_KINDS:
        raise TypeError(f"arrays of {array.dtype} cannot pass to or from a limited child")
    content = np.ascontiguousarray(array)
    buffer = _add(content.reshape(-1).view(np.uint8).data, buffers)
    return {"array": buffer, "dtype": content.dtype.str, "shape": list(array.shape)}


def _add(buffer: memoryview, buffers: list[memoryview]) -> int:
    buffers.append(buffer)
    return len(buffers) - 1


def _unpack(node: Any, buffers: list[bytearray]) -> Any:
    if not isinstance(node, dict):
        return node
    if "array" in node:
        dtype = np.dtype(str(node["dtype"]))
        if dtype.kind not in ARRAY_KINDS:
            raise ValueError("an array of a kind that may not pass")
        return np.frombuffer(buffers[node["array"]], dtype).reshape(node["shape"])
    ((kind, content),) = node.items()
    if kind == "bytes":
        return bytes(buffers[content])
    if kind == "dict":
        return {key: _unpack(each, buffers) for key, each in content.items()}
    return {"tuple": tuple, "list": list}[kind](_unpack(each, buffers) for each in content)


def _read(wire: socket.socket, count: int, deadline: float | None) -> bytearray:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        _wait_at_most(wire, deadline)
        try:
            got = wire.recv_into(view)
        except TimeoutError as error:
            raise WireTimeout("no message came in time") from error
        except OSError as error:
            raise WireClosed("the other side is gone") from error
        if got == 0:
            raise WireClosed("the other side is gone")
        view = view[got:]
    return buffer


def _wait_at_most(wire: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        wire.settimeout(None)
        return
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise WireTimeout("no message came in time")
    wire.settimeout(left_s)
