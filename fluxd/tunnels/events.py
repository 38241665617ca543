"""
What happens, told to whoever listens: a bounded queue for each reader.

A reader that falls behind loses its backlog and is given a fresh snapshot instead, so that it is never wrong for long
and never costs more than `BACKLOG` events. One that comes back soon and says what it saw last goes on from there.

Numbers begin at the wall clock's milliseconds: after a restart none is given out again, so that nobody resumes in
another life's history.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fluxd import wire
from fluxd.clock import Clock
from fluxd.core.errors import FluxError

BACKLOG: Final = 1000
# So long after the last reader has left, events are still kept for its return.
RETURN_WITHIN_S: Final = 120.0

Snapshot = Callable[[], list[wire.Tunnel]]


class Events:
    """The stream that every reader gets a part of."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seq = int(clock.wall().timestamp() * 1000)
        # How often each thing has happened, told or not.
        self.counts: Counter[str] = Counter()
        self._readers: set[Reader] = set()
        # The latest events; those after number `_kept_after` are all there.
        self._kept: deque[wire.Event] = deque(maxlen=BACKLOG)
        self._kept_after = self._seq
        self._wanted_until = float("-inf")

    def emit(
        self,
        name: str,
        *,
        tunnel: Callable[[], wire.Tunnel] | None = None,
        host: Callable[[], wire.HostStatus] | None = None,
        problem: FluxError | None = None,
        message: str | None = None,
    ) -> None:
        """Tell every reader whom it concerns. *tunnel* and *host* are asked only if somebody reads, or may return."""
        self._seq += 1
        self.counts[name] += 1
        if not self._readers and self._clock.now() >= self._wanted_until:
            self._kept.clear()
            self._kept_after = self._seq
            return
        event = wire.Event(
            seq=self._seq,
            at=self._clock.wall(),
            name=name,
            tunnel=tunnel() if tunnel else None,
            host=host() if host else None,
            problem=wire.problem_of(problem) if problem else None,
            message=message,
        )
        if len(self._kept) == BACKLOG:
            self._kept_after = self._kept[0].seq
        self._kept.append(event)
        for reader in self._readers:
            reader.offer(event)

    @contextmanager
    def reader(
        self, snapshot: Snapshot, *, only: str | None = None, since: int | None = None
    ) -> Iterator[AsyncIterator[wire.Event]]:
        """
        Events from now on, after a snapshot; of the tunnel *only* if one is named.

        Without the snapshot, those after number *since*, if all of them are still known.
        """
        reader = Reader(self, snapshot, only, self._missed(since))
        self._readers.add(reader)
        try:
            yield reader.events()
        finally:
            self._readers.discard(reader)
            self._wanted_until = self._clock.now() + RETURN_WITHIN_S

    def _missed(self, since: int | None) -> list[wire.Event] | None:
        """What has happened after *since*; None where that is not known."""
        if since is None or not self._kept_after <= since <= self._seq:
            return None
        return [event for event in self._kept if event.seq > since]

    def snapshot(self, tunnels: list[wire.Tunnel]) -> wire.Event:
        """How things stand, for one reader alone."""
        return wire.Event(seq=self._seq, at=self._clock.wall(), name="snapshot", tunnels=tunnels)


class Reader:
    """One stream's queue."""

    def __init__(
        self, events: Events, snapshot: Snapshot, only: str | None, missed: list[wire.Event] | None = None
    ) -> None:
        self._events = events
        self._snapshot = snapshot
        self._only = only
        self._waiting: deque[wire.Event] = deque()
        # The first thing it is told is how things stand, unless it knows up to what it missed.
        self._behind = missed is None
        self._news = asyncio.Event()
        for event in missed or ():
            self.offer(event)

    def offer(self, event: wire.Event) -> None:
        if self._only is not None and event.tunnel is not None and event.tunnel.id != self._only:
            return
        if len(self._waiting) >= BACKLOG:
            self._waiting.clear()
            self._behind = True
        self._waiting.append(event)
        self._news.set()

    async def events(self) -> AsyncIterator[wire.Event]:
        """Without end."""
        while True:
            if self._behind:
                self._behind = False
                self._waiting.clear()
                shown = [one for one in self._snapshot() if self._only in (None, one.id)]
                yield self._events.snapshot(shown)
            while self._waiting and not self._behind:
                yield self._waiting.popleft()
            if not self._behind:
                self._news.clear()
                await self._news.wait()
