"""The options of a runner: declared once, and taken from there."""

from dataclasses import fields
from inspect import signature
from unittest import mock

from django.core.management import load_command_class
from django.test import SimpleTestCase

from dbtasks.options.runner import FLAGS, RunnerOptions, command_defaults, default_workers
from dbtasks.runner import Runner


class RunnerOptionsTests(SimpleTestCase):
    """The class Runner, the commands and the declaration agree."""

    def test_runner_takes_every_option_with_its_default(self):
        """The arguments of Runner are the options, in their order."""
        taken = {name: value.default for name, value in signature(Runner).parameters.items()}
        declared = {option.name: option.default for option in fields(RunnerOptions)}

        self.assertEqual(list(declared.items()), list(taken.items()))

    def test_default_number_of_threads(self):
        """One processor is left to the rest, except where threads compute side by side."""
        for has_gil, cpus, expected in (
            (True, 4, 3),
            (True, 1, 1),
            (False, 4, 4),
            (False, 1, 1),
        ):
            count = mock.patch("os.process_cpu_count", return_value=cpus, create=True)
            gil = mock.patch("sys._is_gil_enabled", return_value=has_gil, create=True)
            with self.subTest(has_gil=has_gil, cpus=cpus), count, gil:
                self.assertEqual(expected, default_workers())

    def test_taskrunner_has_every_flag(self):
        """Each flag is there with its help, and without it the default of commands holds."""
        parser = load_command_class("dbtasks", "taskrunner").create_parser(
            "manage.py", "taskrunner"
        )
        actions = {action.dest: action for action in parser._actions}

        for name, flag in FLAGS.items():
            with self.subTest(name):
                self.assertEqual(list(flag.names), actions[name].option_strings)
                self.assertEqual(flag.help, actions[name].help)
        found = vars(parser.parse_args([]))
        self.assertEqual(command_defaults(), {name: found[name] for name in FLAGS})
