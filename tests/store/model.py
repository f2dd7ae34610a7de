"""The life of rows and workers as a model small enough to be searched whole.

Owns the moves: what the store and the runner may do to a row, each step that another process can
come between as a move of its own. Whoever may act may also wait for ever, so a paused worker needs
no move. What could be seen at any time may be acted on at any later time, by several, more than
once: so a rescuer, a person or a purge that looks, sleeps and then writes. A write's answer may be
lost, and then the write is sent again. Every guard has a name, and a model can be made without it.
Never imports dbtasks: the model is to be read beside `dbtasks/store`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

GUARDS = {
    "claim.status": "claims READY rows only",
    "claim.hold": "claims rows without a hold only",
    "claim.registered": "a worker that was declared lost claims nothing",
    "claim.counts": "the start is counted by the claim, not by the outcome",
    "settle.id": "an outcome is written to its own row",
    "settle.status": "an outcome is written while the row is RUNNING",
    "settle.fence": "an outcome is written while its claim is the last",
    "settle.failures": "an outcome that is an exception counts as one",
    "released.phase": "only what was not started is requeued as not started",
    "rescue.lost": "rows of workers that were declared lost are rescued, no others",
    "rescue.status": "a rescued row is still RUNNING",
    "rescue.fence": "a rescued row is in the claim that was seen",
    "rescue.counts": "a rescue counts a lost start",
    "declare_lost.beat": "a worker is declared lost at the beat that was seen",
    "beat.state": "the beat of a worker that was declared lost fails",
    "leave.settled": "a worker that stops has settled its rows before it is forgotten",
    "forget.rows": "a lost worker is forgotten when it holds no row",
    "reconcile": "a worker requeues what is in its name, but not in its hands",
    "cancel.status": "cancels READY rows only",
    "cancel.fence": "cancels the row as it was seen",
    "request.status": "asks RUNNING rows only to end",
    "retry.status": "retries FAILED rows only",
    "purge.status": "purges finished rows only",
    "older.status": "deletes a row if it is still finished after it was seen",
}

READY, RUNNING, SUCCESSFUL, FAILED, DELETED = "READY", "RUNNING", "SUCCESSFUL", "FAILED", "deleted"
FINISHED = (SUCCESSFUL, FAILED)
# How a claim in hand may end: settled at once, or at any later time.
ENDS = {"claimed": ("released",), "started": ("succeeded", "failed")}
ABSENT, LIVE, LOST = "absent", "live", "lost"
MAX_LOST = 3

# What no move and no state may break.
FINAL = "a finished row stays as it is until somebody retries or deletes it"
ONCE = "a start is settled once"
FRESH = "no write goes by what is no longer so"
OWNED = "a run is ended by its owner or a rescue, and its row is claimed by nobody else"
BOUNDED = "starts stay within max_attempts and lost ones"
COUNTED = "every start is counted in `attempt`"
DUE = "nothing starts before it is due"
TRUE = "the result is that of the last start"
KEPT = "who beats keeps its rows"
SETTLED = "what is claimed is not taken back at once"
TOLD = "a worker that was declared lost learns of it"
WHOLE = "nothing unfinished is deleted"
OPEN = "every unfinished row can be claimed, is in the hands of a process, or can be rescued"


class Row(NamedTuple):
    """A row; below the line what only the model knows."""

    status: str = READY
    held: bool = False
    fence: int = 0
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    worker: Any = None
    cancel_requested: bool = False
    # -----
    # The fence that the result is of, and the last fence that was settled.
    result: int = 0
    settled: int = 0
    starts: int = 0
    released: int = 0
    retried: int = 0


class Held(NamedTuple):
    """A claim in the hands of a process: the row as the claim told it, and how far it is."""

    task: int
    row: Row
    phase: str = "claimed"


class Process(NamedTuple):
    """A runner's process; its name is new each time that it registers."""

    alive: bool = True
    name: int = 0
    holds: frozenset[Held] = frozenset()


class State(NamedTuple):
    """All rows, processes and workers, and all that anybody can have seen and may yet act on."""

    rows: tuple[Row, ...]
    processes: tuple[Process, ...]
    # By process and name: what the workers' table says, and the beat.
    workers: tuple[tuple[tuple[str, int], ...], ...]
    seen: frozenset[tuple[Any, ...]] = frozenset()


class Broken(Exception):
    """A move broke a promise."""


class Move(NamedTuple):
    """What happened, and the state it led to, or the promise it broke."""

    what: str
    state: State | None
    broken: str = ""


# What somebody could do, and the state it leads to; None if it does not come to that.
type Step = tuple[str, Callable[[], State | None]]


class Model:
    """Moves of some tasks and two processes, all guards in place but `without`."""

    def __init__(
        self,
        tasks: int = 1,
        *,
        max_attempts: int = 3,
        names: int = 1,
        beats: int = 0,
        releases: int = 0,
        retries: int = 0,
        by_hand: bool = False,
        held: bool = False,
        forgets: bool = False,
        stale: int = 1,
        without: str = "",
    ) -> None:
        assert without in GUARDS or not without
        self.max_attempts, self.names, self.beats = max_attempts, names, beats
        self.releases, self.retries = releases, retries
        self.by_hand, self.forgets, self.stale = by_hand, forgets, stale
        self.without = without
        workers = ((LIVE, 0), *[(ABSENT, 0)] * (names - 1))
        first = State((Row(held=held),) * tasks, (Process(),) * 2, (workers,) * 2)
        self.first = self._remember(first)

    def guards(self, name: str, holds: Callable[[], bool]) -> bool:
        """Tell whether the guard lets the write through: it holds, or it was taken out."""
        return name == self.without or holds()

    def moves(self, state: State) -> Iterator[Move]:
        """Yield every move that somebody can make next."""
        for what, move in self._possible(state):
            try:
                after = move()
            except Broken as error:
                yield Move(what, None, str(error))
                continue
            if after is not None and after != state:
                yield Move(what, self._remember(after), self._state_breaks(after))

    def _possible(self, state: State) -> Iterator[Step]:
        for t, row in enumerate(state.rows):
            if row.status != DELETED:
                yield from self._possible_by_hand(state, t)
        for p, process in enumerate(state.processes):
            if process.alive:
                yield from self._possible_to(state, p)
            else:
                yield f"restart {p}", lambda p=p: self.join(state, p)
            for n in range(self.names):
                yield f"declare lost {p}.{n}", lambda p=p, n=n: self.declare_lost(state, p, n)
        for act, *seen in state.seen:
            told = f"{act} as seen {' '.join(map(str, seen))}"
            yield told, lambda act=act, seen=seen: getattr(self, act)(state, *seen)

    def _possible_by_hand(self, state: State, t: int) -> Iterator[Step]:
        yield f"promote {t}", lambda: self.promote(state, t)
        yield f"retry {t}", lambda: self.retry(state, t)
        if self.by_hand:
            yield f"request {t}", lambda: self.request(state, t)
            yield f"purge {t}", lambda: self.purge(state, t)

    def _possible_to(self, state: State, p: int) -> Iterator[Step]:
        """Yield the steps of a process that lives."""
        yield f"beat {p}", lambda: self.beat(state, p)
        yield f"crash {p}", lambda: self.crash(state, p)
        yield f"leave {p}", lambda: self.leave(state, p)
        for t in range(len(state.rows)):
            told = f"claim {p} {t}"
            yield told, lambda t=t: self.claim(state, p, t, True)
            yield f"{told} (answer lost)", lambda t=t: self.claim(state, p, t, False)
            yield f"reconcile {p} {t}", lambda t=t: self.reconcile(state, p, t)
        for held in state.processes[p].holds:
            yield from self._possible_with(state, p, held)

    def _possible_with(self, state: State, p: int, held: Held) -> Iterator[Step]:
        """Yield the steps with a claim in hand."""
        told = f"{p} {held.task} (fence {held.row.fence})"
        phases = ENDS.get(held.phase, (held.phase,))
        if held.phase == "claimed":
            yield f"start {told}", lambda: self.start(state, p, held)
        if held.phase == "started" and self.without == "released.phase":
            phases = (*phases, "released")
        for phase in phases:
            ended, step = held._replace(phase=phase), f"settle {phase} {told}"
            yield step, lambda ended=ended: self.settle(state, p, held, ended, True)
            yield (
                f"{step} (answer lost)",
                lambda ended=ended: self.settle(state, p, held, ended, False),
            )

    def _remember(self, state: State) -> State:
        """Add what can be seen now, and leave out what nobody can act on any more."""
        state = self._pruned(state)
        seen = {act for act in state.seen if self._can_matter(state, act)}
        for t, row in enumerate(state.rows):
            if row.status == READY and self.by_hand:
                seen.add(("cancel", t, row.fence))
            if row.status in FINISHED and self.by_hand:
                seen.add(("delete", t))
            lost = row.status == RUNNING and self._is_lost(state, row)
            if row.status == RUNNING and self.guards("rescue.lost", lambda lost=lost: lost):
                seen.add(("rescue", t, row.fence, row.attempt, row.failures, row.lost))
        if self.forgets:
            seen |= self._forgettable(state)
        return state._replace(seen=frozenset(seen))

    def _can_matter(self, state: State, act: tuple[Any, ...]) -> bool:
        """Tell whether the write could still do something: fences only grow."""
        if act[0] == "forget":
            return state.workers[act[1]][act[2]][0] == LOST
        if act[0] == "delete":
            return self.without == "older.status"
        row = state.rows[act[1]]
        if row.status == DELETED:
            return False
        return act[2] == row.fence or self.without == f"{act[0]}.fence"

    def _pruned(self, state: State) -> State:
        """Take out of hands what can neither start nor be written any more."""
        if self.without.startswith("settle."):
            return state
        for p, process in enumerate(state.processes):
            dead = {held for held in process.holds if self._is_dead(state.rows[held.task], held)}
            if dead:
                state = with_holds(state, p, process.holds - dead)
        return state

    def _is_dead(self, row: Row, held: Held) -> bool:
        if row.status == RUNNING and row.fence == held.row.fence:
            return False
        return held.phase != "claimed" or row.status == DELETED

    def _is_lost(self, state: State, row: Row) -> bool:
        p, n = row.worker
        return state.workers[p][n][0] == LOST

    def _forgettable(self, state: State) -> set[tuple[Any, ...]]:
        holding = {row.worker for row in state.rows}
        return {
            ("forget", p, n)
            for p, names in enumerate(state.workers)
            for n, (known, _) in enumerate(names)
            if known == LOST and self.guards("forget.rows", lambda p=p, n=n: (p, n) not in holding)
        }

    def _possible_with(
        self, state: State, p: int, held: Held
    ) -> Iterator[tuple[str, Callable[[], State | None]]]:
        told = f"{p} {held.task} (fence {held.row.fence})"
        phases = ENDS.get(held.phase, (held.phase,))
        if held.phase == "claimed":
            yield f"start {told}", lambda: self.start(state, p, held)
        if held.phase == "started" and self.without == "released.phase":
            phases = (*phases, "released")
        for phase in phases:
            ended = held._replace(phase=phase)
            for heard in (True, False):
                yield (
                    f"settle {phase} {told}" + " (answer lost)" * (not heard),
                    lambda ended=ended, heard=heard: self.settle(state, p, held, ended, heard),
                )

    # Rows, by runners

    def claim(self, state: State, p: int, t: int, heard: bool) -> State | None:
        row, process = state.rows[t], state.processes[p]
        known = state.workers[p][process.name][0]
        if not (
            row.status != DELETED
            and self.guards("claim.status", lambda: row.status == READY)
            and self.guards("claim.hold", lambda: not row.held)
            and self.guards("claim.registered", lambda: known == LIVE)
        ):
            return None
        if sum(held.task == t for other in state.processes for held in other.holds) > self.stale:
            return None
        promise(row.status not in FINISHED, FINAL)
        promise(row.status != RUNNING, OWNED)
        promise(not row.held, DUE)
        promise(known == LIVE, SETTLED)
        counted = 0 if self.without == "claim.counts" else 1
        row = row._replace(
            status=RUNNING,
            fence=row.fence + 1,
            attempt=row.attempt + counted,
            worker=(p, process.name),
        )
        state = with_row(state, t, row)
        return with_holds(state, p, process.holds | {Held(t, row)}) if heard else state

    def start(self, state: State, p: int, held: Held) -> State:
        row = state.rows[held.task]
        state = with_row(state, held.task, row._replace(starts=row.starts + 1))
        holds = state.processes[p].holds - {held} | {held._replace(phase="started")}
        return with_holds(state, p, holds)

    def settle(self, state: State, p: int, held: Held, ended: Held, heard: bool) -> State | None:
        """Write an outcome; whose answer is lost, or who is slow, writes the same one again."""
        own = state.rows[held.task]
        if ended.phase == "released" != held.phase:
            if own.released == self.releases:
                return None
            state = with_row(state, held.task, own._replace(released=own.released + 1))
        for t, row in enumerate(state.rows):
            if self.guards("settle.id", lambda t=t: t == held.task) and self._stands(
                row, held.row.fence, "settle"
            ):
                check_end(row, t == held.task, held.row)
                state = with_row(state, t, self._outcome(row, ended))
        rest = state.processes[p].holds - {held}
        return with_holds(state, p, rest if heard else rest | {ended})

    def _stands(self, row: Row, fence: int, kind: str) -> bool:
        return (
            row.status != DELETED
            and self.guards(f"{kind}.status", lambda: row.status == RUNNING)
            and self.guards(f"{kind}.fence", lambda: row.fence == fence)
        )

    def _outcome(self, row: Row, held: Held) -> Row:
        claimed = held.row
        row = row._replace(worker=None, settled=claimed.fence, attempt=claimed.attempt)
        if self.without == "claim.counts":
            row = row._replace(attempt=claimed.attempt + 1)
        if held.phase == "released":
            return row._replace(status=READY, attempt=claimed.attempt - 1)
        if held.phase == "succeeded":
            return row._replace(status=SUCCESSFUL, result=claimed.fence)
        failures = claimed.failures + (self.without != "settle.failures")
        row = row._replace(failures=failures)
        if failures >= self.max_attempts or row.cancel_requested:
            return row._replace(status=FAILED, result=claimed.fence)
        return row._replace(status=READY, held=True)

    def promote(self, state: State, t: int) -> State | None:
        row = state.rows[t]
        if row.status != READY or not row.held:
            return None
        return with_row(state, t, row._replace(held=False))

    def purge(self, state: State, t: int) -> State | None:
        row = state.rows[t]
        if row.status == DELETED or not self.guards("purge.status", lambda: row.status in FINISHED):
            return None
        promise(row.status in FINISHED, WHOLE)
        return with_row(state, t, row._replace(status=DELETED))

    def delete(self, state: State, t: int) -> State | None:
        row = state.rows[t]
        if row.status == DELETED or not self.guards("older.status", lambda: row.status in FINISHED):
            return None
        promise(row.status in FINISHED, WHOLE)
        return with_row(state, t, row._replace(status=DELETED))

    # Rows, by people

    def retry(self, state: State, t: int) -> State | None:
        row = state.rows[t]
        if row.status == DELETED or row.retried == self.retries:
            return None
        if not self.guards("retry.status", lambda: row.status == FAILED):
            return None
        promise(row.status != RUNNING, OWNED)
        promise(row.status != SUCCESSFUL, FINAL)
        row = row._replace(status=READY, held=False, failures=0, lost=0, cancel_requested=False)
        return with_row(state, t, row._replace(result=0, retried=row.retried + 1))

    def request(self, state: State, t: int) -> State | None:
        row = state.rows[t]
        if not self.guards("request.status", lambda: row.status == RUNNING):
            return None
        promise(row.status not in FINISHED, FINAL)
        return with_row(state, t, row._replace(cancel_requested=True))

    def cancel(self, state: State, t: int, fence: int) -> State | None:
        row = state.rows[t]
        if not (
            row.status != DELETED
            and self.guards("cancel.status", lambda: row.status == READY)
            and self.guards("cancel.fence", lambda: row.fence == fence)
        ):
            return None
        promise(row.status not in FINISHED, FINAL)
        promise(row.status != RUNNING, OWNED)
        promise(row.fence == fence, FRESH)
        return with_row(state, t, row._replace(status=FAILED, held=False))

    # Workers

    def beat(self, state: State, p: int) -> State | None:
        name = state.processes[p].name
        known, beat = state.workers[p][name]
        if known == LIVE:
            return None if beat == self.beats else with_worker(state, p, name, LIVE, beat + 1)
        promise(known != LOST or self.without != "beat.state", TOLD)
        return self.join(state, p)

    def join(self, state: State, p: int) -> State | None:
        """Register under a new name; what is in hand stays there."""
        name = state.processes[p].name + 1
        if name == self.names:
            return None
        process = state.processes[p]._replace(alive=True, name=name)
        return with_worker(with_process(state, p, process), p, name, LIVE)

    def crash(self, state: State, p: int) -> State:
        return with_process(state, p, Process(alive=False, name=state.processes[p].name))

    def leave(self, state: State, p: int) -> State | None:
        process = state.processes[p]
        mine = [row for row in state.rows if row.worker == (p, process.name)]
        if not self.guards("leave.settled", lambda: not process.holds and not mine):
            return None
        return with_worker(self.crash(state, p), p, process.name, ABSENT)

    def reconcile(self, state: State, p: int, t: int) -> State | None:
        """Requeue a row in this worker's name whose claim it never heard of: nothing started."""
        row, process = state.rows[t], state.processes[p]
        if self.without == "reconcile" or row.worker != (p, process.name):
            return None
        if any(held.task == t and held.row.fence == row.fence for held in process.holds):
            return None
        if row.released == self.releases:
            return None
        back = row._replace(status=READY, attempt=row.attempt - 1, worker=None, settled=row.fence)
        return with_row(state, t, back._replace(released=row.released + 1))

    def declare_lost(self, state: State, p: int, n: int) -> State | None:
        """Declare lost by the last beat, or by an earlier one where nothing keeps from that."""
        known, beat = state.workers[p][n]
        if known != LIVE:
            return None
        promise(beat == 0 or self.without != "declare_lost.beat", KEPT)
        return with_worker(state, p, n, LOST, beat)

    def rescue(
        self, state: State, t: int, fence: int, attempt: int, failures: int, lost: int
    ) -> State | None:
        row = state.rows[t]
        seen = Row(fence=fence, attempt=attempt, failures=failures, lost=lost)
        if not self._stands(row, fence, "rescue"):
            return None
        check_end(row, True, seen)
        promise(row.worker is None or self._is_lost(state, row), KEPT)
        return with_row(state, t, self._lost(row, seen))

    def _lost(self, row: Row, seen: Row) -> Row:
        lost = seen.lost + (self.without != "rescue.counts")
        status = FAILED if lost >= MAX_LOST else READY
        counts = {"attempt": seen.attempt, "failures": seen.failures, "lost": lost}
        result = seen.fence if status == FAILED else 0
        return row._replace(status=status, worker=None, settled=seen.fence, result=result, **counts)

    def forget(self, state: State, p: int, n: int) -> State | None:
        if state.workers[p][n][0] != LOST:
            return None
        return with_worker(state, p, n, ABSENT)

    # States

    def _state_breaks(self, state: State) -> str:
        """Return the promise that the state breaks, if it breaks one."""
        for t, row in enumerate(state.rows):
            most = self.max_attempts + MAX_LOST - 1
            if row.starts > most * (row.retried + 1):
                return BOUNDED
            if row.starts > row.attempt:
                return COUNTED
            if row.result and row.result != row.fence:
                return TRUE
            if row.status == RUNNING and not self._is_open(state, t, row):
                return OPEN
        return ""

    def _is_open(self, state: State, t: int, row: Row) -> bool:
        """Tell whether the RUNNING row will get on."""
        for process in state.processes:
            if any(held.task == t and held.row.fence == row.fence for held in process.holds):
                return True
        p, n = row.worker
        process, known = state.processes[p], state.workers[p][n][0]
        if known == LIVE and process.alive and process.name == n:
            # It beats, so nobody gives it up: it must see to the row itself.
            return self.without != "reconcile"
        return known != ABSENT


def promise(kept: bool, words: str) -> None:
    """Raise Broken unless the promise is kept."""
    if not kept:
        raise Broken(words)


def check_end(row: Row, is_own: bool, seen: Row) -> None:
    """Check what a write that ends a run finds."""
    promise(row.status not in FINISHED, FINAL)
    promise(row.settled < seen.fence or not is_own, ONCE)
    promise(is_own and row.fence == seen.fence, FRESH)


def with_row(state: State, t: int, row: Row) -> State:
    """Return the state with that row."""
    return state._replace(rows=(*state.rows[:t], row, *state.rows[t + 1 :]))


def with_process(state: State, p: int, process: Process) -> State:
    """Return the state with that process."""
    processes = (*state.processes[:p], process, *state.processes[p + 1 :])
    return state._replace(processes=processes)


def with_holds(state: State, p: int, holds: frozenset[Held]) -> State:
    """Return the state with those claims in the hands of the process."""
    return with_process(state, p, state.processes[p]._replace(holds=holds))


def with_worker(state: State, p: int, n: int, known: str, beat: int = 0) -> State:
    """Return the state with the worker known as that."""
    names = (*state.workers[p][:n], (known, beat), *state.workers[p][n + 1 :])
    return state._replace(workers=(*state.workers[:p], names, *state.workers[p + 1 :]))


class Search(NamedTuple):
    """What a search of all states found."""

    states: int
    # The shortest way to a broken promise, and that promise; "" if none can be broken.
    trace: tuple[str, ...] = ()
    broken: str = ""


def search(model: Model) -> Search:
    """Visit every state that the model can reach, nearest first, until a promise is broken."""
    came: dict[State, tuple[State, str] | None] = {model.first: None}
    waiting = deque([model.first])
    while waiting:
        state = waiting.popleft()
        for move in model.moves(state):
            if move.broken:
                return Search(len(came), (*_way(came, state), move.what), move.broken)
            if move.state not in came:
                came[move.state] = (state, move.what)
                waiting.append(move.state)
    return Search(len(came))


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way: list[str] = []
    while step := came[state]:
        state, what = step
        way.append(what)
    return way[::-1]
