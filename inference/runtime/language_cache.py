"""What a language model has read and said, as its graphs take it: by name, and of several answers at once.

Each layer has keys and values of its own, in and out: `prefix_keys.0`, `prefix_values.0`, `past_keys.0` ...
A prefix is what was read, image and question; the past is what each answer said since.

Answers to several questions take a step together although they are of several lengths (continuous batching;
Yu et al., Orca, OSDI 2022): shorter prefixes are filled up at their end, shorter pasts at their beginning,
and the graph is told how much of each counts. So an answer may begin or end at any step of the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from inference.runtime.engine import Array, Tensors

Part = Literal["prefix", "past", "present"]
PREFIX_LENGTHS, PAST_LENGTHS = "prefix_lengths", "past_lengths"
_ALONG = 2  # the axis of (rows, key heads, length, head width) that grows


def of_layer(layer: int, part: Part) -> tuple[str, str]:
    """Names of keys and values of one layer: of the prefix, of the past, or of that with the new token."""
    return f"{part}_keys.{layer}", f"{part}_values.{layer}"


def cache_names(depth: int, part: Part) -> tuple[str, ...]:
    """Those of all layers, in order."""
    return tuple(name for layer in range(depth) for name in of_layer(layer, part))


class AnswerCache:
    """What several answers to one question hold between their steps."""

    def __init__(self, first: Mapping[str, Array], paths: int) -> None:
        """`first` is what the first pass gave; nothing is said yet."""
        self._prefix = {name: value for name, value in first.items() if _is_part(name, "prefix")}
        self._past = {
            _renamed(name, "prefix", "past"): np.zeros(
                (paths, value.shape[1], 0, value.shape[3]), value.dtype
            )
            for name, value in self._prefix.items()
        }
        self._lengths = {PREFIX_LENGTHS: _full_lengths(self._prefix), PAST_LENGTHS: _full_lengths(self._past)}

    @classmethod
    def having_said(cls, first: Mapping[str, Array], length: int) -> "AnswerCache":
        """One answer of `length` tokens that never were, for comparisons: what was read stands for them."""
        cache = cls(first, 1)
        read = {name: value[:, :, :length] for name, value in first.items() if _is_part(name, "prefix")}
        cache.take({_renamed(name, "prefix", "present"): value for name, value in read.items()})
        return cache

    def feeds(self, token_ids: Array) -> dict[str, Array]:
        """What the step takes, for the last token of each answer, (paths, 1) int64."""
        return {"token_ids": token_ids, **self._lengths, **self._prefix, **self._past}

    def take(self, out: Mapping[str, Array]) -> None:
        """Keep what the step gave: every answer is longer now."""
        self._past = {
            _renamed(name, "present", "past"): value
            for name, value in out.items()
            if _is_part(name, "present")
        }
        self._lengths = {**self._lengths, PAST_LENGTHS: _full_lengths(self._past)}


class LanguageSteps:
    """Steps of several questions, joined into one and taken apart again; used by one thread at a time."""

    def __init__(self) -> None:
        self._joined: tuple[list[Array], dict[str, Array]] = ([], {})

    def alike(self, feeds: Tensors) -> int:
        """Only questions with as many answers go together."""
        return len(feeds["token_ids"])

    def join(self, feeds: Sequence[Tensors]) -> dict[str, Array]:
        """One step of all."""
        together = {
            name: np.concatenate([each[name] for each in feeds])
            for name in ("token_ids", PREFIX_LENGTHS, PAST_LENGTHS)
        }
        pasts = {
            name: _stacked([each[name] for each in feeds], is_filled_before=True)
            for name in _parts(feeds[0], "past")
        }
        return {**together, **self._prefixes(feeds), **pasts}

    def split(self, out: Mapping[str, Array], feeds: Sequence[Tensors]) -> list[dict[str, Array]]:
        """What each question's own step would have given."""
        rows = len(feeds[0]["token_ids"])
        return [
            {
                name: _last(value[at * rows : (at + 1) * rows], int(each[PAST_LENGTHS][0]) + 1)
                if _is_part(name, "present")
                else value[at * rows : (at + 1) * rows]
                for name, value in out.items()
            }
            for at, each in enumerate(feeds)
        ]

    def _prefixes(self, feeds: Sequence[Tensors]) -> dict[str, Array]:
        """They stay as they are from step to step: joined anew only when somebody came or went."""
        names = list(_parts(feeds[0], "prefix"))
        known, joined = self._joined
        asked = [each[names[0]] for each in feeds]
        if len(known) != len(asked) or any(a is not b for a, b in zip(known, asked, strict=True)):
            joined = {
                name: _stacked([each[name] for each in feeds], is_filled_before=False) for name in names
            }
            self._joined = (asked, joined)
        return joined


def _full_lengths(caches: Mapping[str, Array]) -> Array:
    """Of keys and values of which everything counts: their length, for each row, int64."""
    rows, _, length, _ = next(iter(caches.values())).shape
    return np.full(rows, length, np.int64)


def _stacked(parts: Sequence[Array], *, is_filled_before: bool) -> Array:
    """Keys or values of several questions, one after the other, as long as the longest."""
    longest = max(part.shape[_ALONG] for part in parts)
    rows, heads, _, width = parts[0].shape
    stacked = np.zeros((rows * len(parts), heads, longest, width), parts[0].dtype)
    for at, part in enumerate(parts):
        length = part.shape[_ALONG]
        start = longest - length if is_filled_before else 0
        stacked[at * rows : (at + 1) * rows, :, start : start + length] = part
    return stacked


def _last(value: Array, length: int) -> Array:
    return value[:, :, value.shape[_ALONG] - length :]


def _parts(feeds: Tensors, part: Part) -> Iterator[str]:
    return (name for name in feeds if _is_part(name, part))


def _is_part(name: str, part: Part) -> bool:
    return name.startswith((f"{part}_keys.", f"{part}_values."))


def _renamed(name: str, part: Part, other: Part) -> str:
    return other + name.removeprefix(part)
