"""Floods: some of each name are told, then how many were not; a crowd of names fills no memory."""

import pytest

from dicom_node.audit import throttle
from dicom_node.audit.throttle import Throttle


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_some_are_told_and_the_number_of_the_others_later(clock):
    flood = Throttle(2, 60.0, shares=True, clock=clock)
    assert [flood.ask("a") for _ in range(5)] == [0, 0, None, None, None]
    assert flood.ask("b") == 0
    clock.now = 60.0
    assert [flood.ask("a") for _ in range(3)] == [3, 0, None]


def test_a_crowd_shares_one_count(clock, monkeypatch):
    monkeypatch.setattr(throttle, "MOST_ADDRESSES", 3)
    flood = Throttle(1, 60.0, shares=True, clock=clock)
    assert [flood.ask(str(number)) for number in range(6)] == [0, 0, 0, 0, None, None]
    assert len(flood._seen) == 4
    clock.now = 61.0
    assert flood.ask("new") == 0  # the old ones are forgotten, but for who was not told of
    assert len(flood._seen) == 2


def test_a_crowd_of_readers_is_told_one_by_one(clock, monkeypatch):
    monkeypatch.setattr(throttle, "MOST_ADDRESSES", 3)
    reads = Throttle(1, 60.0, shares=False, clock=clock)
    assert [reads.ask(str(number)) for number in range(6)] == [0] * 6
    assert reads.ask("0") is None
    assert len(reads._seen) == 3


def test_without_a_window_all_are_told(clock):
    reads = Throttle(1, 0.0, shares=False, clock=clock)
    assert [reads.ask("a") for _ in range(3)] == [0, 0, 0]
