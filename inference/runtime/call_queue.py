"""The calls of many threads in one queue: most urgent first, several together, none lost or done twice."""

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inference.errors import DeadlinePassed, InferenceError

Request = TypeVar("Request")
Result = TypeVar("Result")

AGING_S = 5.0  # waiting for so long counts as one step of priority: nothing waits for ever


@dataclass(frozen=True)
class Urgency:
    """How soon something must be run: a larger priority first; past `deadline` (monotonic seconds) never."""

    priority: float = 0.0
    deadline: float = float("inf")


NORMAL = Urgency()
URGENCY: ContextVar[Urgency] = ContextVar("URGENCY", default=NORMAL)  # of what this thread works on


@dataclass(eq=False)
class _Ticket(Generic[Request, Result]):
    request: Request
    urgency: Urgency
    arrived: float
    number: int
    outcome: list[Result | BaseException] = field(default_factory=list)  # empty until it is settled


class CallQueue(Generic[Request, Result]):
    """Hands requests of many threads to `run`, at most `most` at a time; one thread does so for all."""

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Result | Exception]],
        *,
        most: int = 1,
        delay_s: float = 0.0,
        alike: Callable[[Request], Hashable] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`delay_s`: wait so long for company; `alike`: only requests with equal ones go together."""
        self._run = run
        self._most, self._delay_s, self._alike, self._clock = most, delay_s, alike, clock
        self._waiting: list[_Ticket[Request, Result]] = []
        self._changed = threading.Condition()
        self._is_led = False
        self._numbers = itertools.count()

    def ask(self, request: Request, urgency: Urgency) -> Result:
        """The result of `request`, as soon as it is its turn.

        Raises
        ------
        DeadlinePassed
            If its turn did not come in time; it was not run.
        InferenceError
            Or whatever else `run` said of it.
        RuntimeError
            If the thread that ran it was stopped by an error of another kind.
        """
        if self._takes_lead_at_once(urgency):
            return self._run_own(request)
        ticket = _Ticket[Request, Result](request, urgency, self._clock(), next(self._numbers))
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()
            self._wait(ticket)
            if not ticket.outcome:
                self._is_led = True
        if not ticket.outcome:
            self._lead(ticket)
        return _told(*ticket.outcome)

    def _takes_lead_at_once(self, urgency: Urgency) -> bool:
        """Whether nobody else is here and no company is waited for: the usual case, and to cost nothing."""
        if self._delay_s > 0 or urgency.deadline <= self._clock():
            return False
        with self._changed:
            if self._is_led or self._waiting:
                return False
            self._is_led = True
            return True

    def _run_own(self, request: Request) -> Result:
        try:
            return _told(*self._run([request]))
        finally:
            with self._changed:
                self._is_led = False
                if self._waiting:
                    self._changed.notify_all()

    def _wait(self, ticket: _Ticket[Request, Result]) -> None:
        """Until the ticket is settled, or there is nobody who runs for all."""
        while self._is_led and not ticket.outcome:
            left_s = ticket.urgency.deadline - self._clock()
            if left_s <= 0 and ticket in self._waiting:
                self._waiting.remove(ticket)
                ticket.outcome.append(_too_late())
                return
            self._changed.wait(min(left_s, threading.TIMEOUT_MAX) if ticket in self._waiting else None)

    def _lead(self, own: _Ticket[Request, Result]) -> None:
        try:
            while not own.outcome:
                self._settle(self._take())
        finally:
            with self._changed:
                self._is_led = False
                self._changed.notify_all()

    def _take(self) -> list[_Ticket[Request, Result]]:
        """The most urgent that waits, and what may go with it; what is too late is refused."""
        with self._changed:
            if self._delay_s > 0:
                self._changed.wait_for(lambda: len(self._waiting) >= self._most, self._delay_s)
            now = self._clock()
            for late in [each for each in self._waiting if each.urgency.deadline <= now]:
                self._waiting.remove(late)
                late.outcome.append(_too_late())
            self._waiting.sort(key=lambda each: (-_rank(each, now), each.number))
            if not self._waiting:
                return []
            kind = self._alike(self._waiting[0].request)
            taken = [each for each in self._waiting if self._alike(each.request) == kind][: self._most]
            self._waiting = [each for each in self._waiting if each not in taken]
            return taken

    def _settle(self, taken: Sequence[_Ticket[Request, Result]]) -> None:
        outcomes: Sequence[Result | BaseException] = [RuntimeError("who ran this was stopped")] * len(taken)
        try:
            outcomes = self._run([each.request for each in taken]) if taken else []
        except InferenceError as error:  # anything else goes through in the thread that ran it
            outcomes = [error] * len(taken)
        finally:
            with self._changed:
                for each, outcome in zip(taken, outcomes, strict=True):
                    each.outcome.append(outcome)
                self._changed.notify_all()


def _rank(ticket: "_Ticket[Request, Result]", now: float) -> float:
    return ticket.urgency.priority + (now - ticket.arrived) / AGING_S


def _told(outcome: Result | BaseException) -> Result:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _too_late() -> DeadlinePassed:
    return DeadlinePassed("its turn did not come before its deadline; there is more work than time.")
