"""Each promise of the README is held by tests, which this list names."""

import re
from pathlib import Path

from django.test import SimpleTestCase
from django.utils.module_loading import import_string

README = Path(__file__).resolve().parents[1] / "README.md"

# The first words of each promise, and tests that fail if it is broken.
PROMISES = {
    "Enqueueing is part of your transaction.": [
        "backend.test_backend.TransactionTests.test_a_rollback_rolls_the_row_back",
    ],
    "A committed task is run to an end": [
        "faults.test_kills.KillTests.test_killed_runners_lose_nothing",
        "faults.test_push.PushTests.test_every_row_comes_to_an_end",
        "faults.test_restarts.CrashTests.test_nothing_is_lost_and_work_goes_on_at_once",
        "faults.test_stops.DeployTests.test_nothing_is_lost_or_doubled",
        "liveness.test_liveness.KilledTests",
    ],
    "A task is claimed by one runner at a time.": [
        "store.test_concurrency.ConcurrencyTests.test_no_row_is_claimed_twice_and_none_is_left",
        "faults.test_starved.StarvedTests.test_it_is_declared_lost_and_writes_nothing_stale",
        "faults.test_stops.FrozenTests.test_nothing_stale_is_written",
    ],
    "A tick of a schedule is fired once": [
        "store.test_periodic.FireTests.test_only_one_of_many_fires_a_tick",
        "runner.test_periodic.SchedulerTests.test_runners_that_start_and_stop_make_one_row_a_tick",
    ],
    "Every task ends with a status": [
        "execution.test_bad_input.BadInputTests.test_exceptions_of_every_kind",
        "execution.test_bad_input.BadInputTests.test_rows_that_somebody_has_spoiled",
        "faults.test_poison.PoisonTests.test_three_deaths_and_no_more",
    ],
    "A database outage or a failover": [
        "faults.test_restarts.SessionTests.test_nothing_is_lost",
        "runner.test_outages.RestartTests.test_nothing_is_lost_by_a_restart_and_work_goes_on_at_once",
        "runner.test_refusals.RefusalTests.test_a_server_that_only_reads_for_a_moment",
    ],
    "A runner that is stopped leaves no row RUNNING.": [
        "runner.test_loop.StopTests.test_what_outlasts_the_grace_is_released",
        "runner.test_loop.StopTests.test_what_has_not_started_is_requeued",
        "runner.test_refusals.RefusalTests.test_a_stop_that_cannot_write_leaves_its_rows_to_others",
    ],
    "The work of a claim does not grow": [
        "store.test_plans.PlanTests.test_hot_statements_use_their_index_and_never_sort",
        "store.test_plans.PlanTests.test_an_empty_poll_reads_one_page_of_an_index",
    ],
    "Tasks run **at least once**": [
        "execution.test_retry.OnLostTests",
        "system.test_other_imports.OtherImportsTests.test_a_row_whose_worker_was_lost",
    ],
}


class PromisesTests(SimpleTestCase):
    """README and tests agree on what is promised."""

    def test_each_promise_of_the_readme_is_listed(self):
        """In the README's order, and nothing else."""
        section = README.read_text().split("## Promises")[1].split("\n## ")[0]
        made = re.findall(r"^(?:\d+\. |(?=Tasks run))(.*)", section, re.MULTILINE)

        self.assertEqual(len(PROMISES), len(made), made)
        for first_words, promise in zip(PROMISES, made, strict=True):
            with self.subTest(promise=promise):
                self.assertEqual(first_words, promise[: len(first_words)])

    def test_each_named_test_exists(self):
        """A test that was renamed is found again."""
        for names in PROMISES.values():
            for name in names:
                with self.subTest(test=name):
                    path, _, last = name.rpartition(".")
                    if last.startswith("test_"):
                        self.assertTrue(hasattr(import_string(f"tests.{path}"), last))
                    else:
                        import_string(f"tests.{name}")
