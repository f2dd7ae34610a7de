"""What a runner prints: a banner, a line for each task, progress, a summary.

Owns the counts of a run and all that is printed about it. Never changes how it runs.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.conf import settings

from ..backend import check_backend
from ..base.result import FAILED, READY, SUCCESSFUL
from ..events import ENDED
from ..execution.settling import Ended
from ..runner.runner import Runner
from .logs import now_text, process_field
from .narrator import Narrator
from .progress import Progress
from .terminal import Terminal, humanize_seconds, plural


class Report:
    """Reports what a runner does, as text or as JSON objects, one per line.

    `out` receives the summary and all JSON, `err` all other text. `process` is the number of this
    process if there are several. The thread that settles batches only counts them; a thread of its
    own formats and writes.
    """

    def __init__(
        self,
        out: Any,
        err: Terminal,
        *,
        verbosity: int = 1,
        as_json: bool = False,
        style: Any = None,
        process: int | None = None,
    ) -> None:
        self.out, self.err, self._process = Terminal(out, err.prefix), err, process
        self.as_json = as_json
        self._verbosity, self._style = verbosity, style
        # How attempts ended, by the status of their row. Written by the settling thread only.
        self.statuses: Counter[str] = Counter()
        self._runner: Runner | None = None
        self._narrator: Narrator | None = None
        self._began = 0.0
        # True when code has changed: the next runner takes over, and this one says nothing of it.
        self.is_replaced = False

    @property
    def failed(self) -> int:
        """How many tasks have FAILED."""
        return self.statuses[FAILED]

    @property
    def done(self) -> int:
        """How many tasks have finished, well or not."""
        return self.statuses[SUCCESSFUL] + self.statuses[FAILED]

    @property
    def is_verbose(self) -> bool:
        """Whether each task gets a line even if there is a bar."""
        return self._verbosity > 1

    @property
    def is_brief(self) -> bool:
        """Whether people read it who have not asked for more."""
        return self._verbosity == 1 and not self.as_json

    @property
    def shows_tracebacks(self) -> bool:
        """Whether the traceback of each failed task is shown, because no log shows it."""
        quiet = not (settings.LOGGING or settings.DEBUG or logging.getLogger().handlers)
        return self.is_verbose and quiet

    @property
    def can_draw(self) -> bool:
        """Whether a bar can be drawn. Several processes would overwrite each other's bar."""
        return self._process is None and not self.as_json and self.err.isatty()

    def start(self, runner: Runner, banner: str) -> None:
        """Report from when the runner is ready. Its name replaces ``{worker_id}`` in the banner.

        Raise RunnerError if no runner can serve its backend.
        """
        self._runner, self._began = runner, time.monotonic()
        runner.events.subscribe(ENDED, self._on_ended)
        if self._verbosity:
            progress = None
            if runner.options.drain:
                progress = Progress(runner, check_backend(runner.options.backend), self.err)
            self._narrator = Narrator(self, runner, progress, banner)
            self._narrator.start()

    def _on_ended(self, batch: Sequence[Ended]) -> None:
        self.statuses.update([outcome.status for _, outcome in batch])
        if self._narrator is not None:
            self._narrator.pick(batch)

    def say(self, text: str, **fields: Any) -> None:
        """Write the text, or its fields as JSON, unless the verbosity is 0."""
        if self._verbosity:
            self.write(text, {"time": now_text(), **fields, "text": text})

    def write(self, text: str, fields: dict[str, Any]) -> None:
        """Write the text as a line, or the fields as JSON."""
        if not self.as_json:
            self.err.line(text)
            return
        if self._process is not None and self._runner is not None:
            own = {**process_field(self._process), "worker_id": self._runner.worker_id}
            fields = {**fields, **own}
        self.out.line(json.dumps(fields))

    def styled(self, line: str, fields: dict[str, Any]) -> str:
        """Return the line of a task, in colour if it has failed and the terminal has colours."""
        if self._style is not None and fields["status"] == FAILED:
            return str(self._style.ERROR(line))
        return line

    def close(self) -> None:
        """Write what is left, and a summary if the runner has started."""
        if self._narrator is None or self._runner is None:
            return
        self._narrator.finish(2.0)
        if self._narrator.has_begun and not (self.is_replaced and self.is_brief):
            self._sum_up(self._runner.released, time.monotonic() - self._began)

    def _sum_up(self, released: int, elapsed: float) -> None:
        retried = self.statuses[READY] - released
        text = (
            f"Ran {plural(self.done, 'task')} in {humanize_seconds(elapsed)} "
            f"({self.done / max(elapsed, 0.001):,.0f}/s): "
            f"{self.statuses[SUCCESSFUL]:,} successful, {self.failed:,} failed."
        )
        if retried:
            text += f" {plural(retried, 'attempt')} will be retried."
        if released:
            text += f" {plural(released, 'running task')} requeued, to start again."
        if not self.as_json:
            self.out.line(text)
            return
        self.write(
            text,
            {
                "event": "runner.stopped",
                "time": now_text(),
                "done": self.done,
                "successful": self.statuses[SUCCESSFUL],
                "failed": self.failed,
                "retried": retried,
                "released": released,
                "duration_s": round(elapsed, 6),
            },
        )
