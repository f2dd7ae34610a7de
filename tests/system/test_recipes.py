"""The recipes for hosts where no runner stays: files, commands, and the requests they send."""

import importlib.util
import json
import os
import re
import shlex
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from unittest import mock, skipUnless
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import yaml
from django.core.management import load_command_class
from django.db import connection
from django.test import (
    Client,
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
    override_settings,
    tag,
)

from dbtasks import Crontab
from dbtasks.contrib.http import endpoints
from tests.tasks import add, wait_for_file

from ..support.processes import ROOT
from ..support.rows import vendor
from ..support.sites import DEPLOYMENT, SiteTestCase
from ..support.waiting import until

PAGES = [ROOT / "docs" / "deployment.md", *DEPLOYMENT.glob("*/README.md")]
BLOCK = re.compile(r"^<!-- recipe ([^>]+) -->\n```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TOKEN = "a-token-of-more-than-thirty-two-characters"
SECRETS = {"DBTASKS_TOKEN": TOKEN, "CRON_SECRET": TOKEN}
# Of gcloud's reference: what each command of ours takes, beside what all of them take.
GCLOUD = {
    "services enable": set(),
    "iam service-accounts create": set(),
    "iam service-accounts add-iam-policy-binding": {"--member", "--role"},
    "projects add-iam-policy-binding": {"--member", "--role"},
    "secrets create": {"--data-file"},
    "secrets add-iam-policy-binding": {"--member", "--role"},
    "tasks queues create": {
        *("--location", "--max-concurrent-dispatches", "--max-attempts"),
        *("--min-backoff", "--max-backoff"),
    },
    "run services add-iam-policy-binding": {"--region", "--member", "--role"},
    "run jobs add-iam-policy-binding": {"--region", "--member", "--role"},
    "run deploy": {
        *("--source", "--region", "--service-account", "--set-secrets", "--timeout"),
        *("--concurrency", "--max-instances", "--no-allow-unauthenticated"),
    },
    "run jobs deploy": {
        *("--source", "--region", "--service-account", "--task-timeout", "--max-retries"),
        *("--command", "--args"),
    },
    "scheduler jobs create http": {
        *("--location", "--schedule", "--uri", "--http-method", "--attempt-deadline"),
        *("--headers", "--oidc-service-account-email", "--oidc-token-audience"),
        "--oauth-service-account-email",
    },
}


def blocks(kind: str) -> list[str]:
    """Return the blocks of all recipes with that mark."""
    return [text for page in PAGES for do, text in BLOCK.findall(page.read_text()) if do == kind]


def block(kind: str) -> str:
    """Return the only block with that mark."""
    [text] = blocks(kind)
    return text


def lines() -> Iterator[list[str]]:
    """Yield the words of each command that people are told to type."""
    for text in blocks("lines"):
        for line in re.findall(r"^\$ (.+)$", text.replace("\\\n", " "), re.MULTILINE):
            for part in line.split(" | "):
                yield shlex.split(part)


def flags(words: list[str]) -> dict[str, str]:
    """Return the values of the flags of one of gcloud's commands."""
    found, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value
        elif name and not found[name]:
            found[name] = word
    return found


def gcloud(name: str) -> list[dict[str, str]]:
    """Return the flags of each command of gcloud's with that name."""
    start = ["gcloud", *name.split()]
    return [flags(words) for words in lines() if words[: len(start)] == start]


def load(name: str) -> Any:
    """Return what is in a file of YAML or JSON."""
    return yaml.safe_load((DEPLOYMENT / name).read_text())


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield where each command of ours stands, and its words."""
    for name in ("cronjob", "deployment"):
        yield name, pod(load(f"kubernetes/{name}.yaml"))["containers"][0]["command"]
    for service in load("render/render.yaml")["services"]:
        yield "render", shlex.split(service["startCommand"])
    for name in ("crontab", "sweep.service", "taskrunner.service"):
        for line in re.findall(r"^[^#\n]*manage\.py .+$", (DEPLOYMENT / name).read_text(), re.M):
            yield name, shlex.split(line)
    for values in gcloud("run jobs deploy"):
        yield "cloudrun", [values["--command"], *values["--args"].split(",")]
    for words in lines():
        if "manage.py" in words:
            yield "docs/deployment.md", words


def pod(manifest: dict[str, Any]) -> Any:
    """Return what the manifest says of its pods."""
    spec = manifest["spec"]
    return (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]["spec"]


def parse(words: list[str]) -> Any:
    """Return what the command's own parser makes of the words; no flag may be cut short."""
    name, *arguments = words[words.index("manage.py") + 1 :]
    parser = load_command_class("dbtasks", name).create_parser("manage.py", name)
    for each in (parser, *_subparsers(parser)):
        each.allow_abbrev = False
    return parser.parse_args(arguments)


def _subparsers(parser: Any) -> Iterator[Any]:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            yield from action.choices.values()


class FileTests(SimpleTestCase):
    """What can be read without a service."""

    def test_commands_exist(self):
        """Each command that starts our code is understood by its own parser."""
        found = dict.fromkeys(where for where, words in commands() if parse(words))

        self.assertEqual(
            {
                *("cronjob", "deployment", "render", "crontab", "sweep.service"),
                *("taskrunner.service", "cloudrun", "docs/deployment.md"),
            },
            set(found),
        )

    def test_every_file_is_read_by_a_test(self):
        """YAML and JSON can be parsed."""
        for path in DEPLOYMENT.rglob("*"):
            if path.suffix in (".yaml", ".yml"):
                yaml.compose(path.read_text())
            elif path.suffix == ".json":
                json.loads(path.read_text())

    def test_the_documentation_shows_the_same_lines(self):
        """There is one line for cron."""
        self.assertEqual((DEPLOYMENT / "crontab").read_text(), block("file crontab"))

    def test_the_cron_job_of_kubernetes(self):
        """It cannot pile up, cannot stop for good, and lets tasks end."""
        manifest = load("kubernetes/cronjob.yaml")
        self.assertEqual(("batch/v1", "CronJob"), (manifest["apiVersion"], manifest["kind"]))
        spec, job = manifest["spec"], manifest["spec"]["jobTemplate"]["spec"]

        Crontab(spec["schedule"])
        self.assertEqual("Forbid", spec["concurrencyPolicy"])
        # A hundred starts that were missed within this time stop a CronJob.
        self.assertLess(10, spec["startingDeadlineSeconds"])
        self.assertLess(spec["startingDeadlineSeconds"], 100 * 60)
        self.assertEqual(0, job["backoffLimit"])
        self.assertGreater(job["activeDeadlineSeconds"], 60)
        self.assertEqual("Never", pod(manifest)["restartPolicy"])
        self.assertTrue(parse(pod(manifest)["containers"][0]["command"]).drain)

    def test_kubernetes_waits_for_the_grace(self):
        """A pod is killed only after its runner should have ended."""
        for name in ("cronjob", "deployment"):
            spec = pod(load(f"kubernetes/{name}.yaml"))
            options = parse(spec["containers"][0]["command"])

            self.assertGreater(spec["terminationGracePeriodSeconds"], options.grace)

    def test_the_deployment_of_kubernetes(self):
        """Its selector finds its pods."""
        manifest = load("kubernetes/deployment.yaml")
        self.assertEqual(("apps/v1", "Deployment"), (manifest["apiVersion"], manifest["kind"]))
        spec = manifest["spec"]

        self.assertEqual(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])

    def test_cron_job_of_render(self):
        """It is one, and has a schedule."""
        [service] = load("render/render.yaml")["services"]

        self.assertEqual("cron", service["type"])
        Crontab(service["schedule"])

    def test_lines_for_gcloud(self):
        """No command and no flag is misspelt, and all speak of the same things."""
        found = set()
        for words in lines():
            if words[0] != "gcloud":
                continue
            line = shlex.join(words[1:])
            [name] = [name for name in GCLOUD if line.startswith(f"{name} ")]
            self.assertLessEqual(set(flags(words)), GCLOUD[name], words)
            found.add(name)
        regions = {
            values[name]
            for words in lines()
            if (values := flags(words)) and words[0] == "gcloud"
            for name in ("--region", "--location")
            if name in values
        }
        accounts = set(re.findall(r"([\w-]+)@PROJECT", "".join(blocks("lines"))))

        self.assertEqual(set(GCLOUD), found)
        self.assertEqual({"europe-west1"}, regions)
        self.assertEqual({"mysite", "tasks-invoker"}, accounts)
        for schedule in gcloud("scheduler jobs create http"):
            Crontab(schedule["--schedule"])

    def test_numbers_for_cloud_run_fit_together(self):
        """Hints are not sent to more tasks than the instances run; nothing waits too briefly."""
        [queue], [service] = gcloud("tasks queues create"), gcloud("run deploy")
        slots = endpoints.__kwdefaults__["concurrency"]
        namespace: dict[str, Any] = {}
        exec(block("settings"), namespace)
        push = namespace["TASKS"]["default"]["OPTIONS"]["push"]

        self.assertEqual(
            int(queue["--max-concurrent-dispatches"]), slots * int(service["--max-instances"])
        )
        self.assertGreaterEqual(int(service["--concurrency"]), slots)
        self.assertGreaterEqual(push.deadline, int(service["--timeout"]))
        [sweep] = [s for s in gcloud("scheduler jobs create http") if "run.app" in s["--uri"]]
        origin = sweep["--oidc-token-audience"]
        self.assertEqual(f"{origin}/tasks/sweep/", sweep["--uri"])
        self.assertIn(urlsplit(origin).netloc, namespace["ALLOWED_HOSTS"])
        for text in blocks("urls public"):
            self.assertIn(origin, text)

    def test_the_job_of_cloud_run_ends_in_time(self):
        """Cloud Run kills ten seconds after SIGTERM, and App Engine too."""
        [words] = [words for where, words in commands() if where == "cloudrun"]
        self.assertLess(parse(words).grace, 10)
        for line in (program("cloudrun/Dockerfile"), program("appengine/app.yaml")):
            options = dict(pairwise(line))
            self.assertEqual("0", options["--timeout"])
            self.assertLess(int(options.get("--graceful-timeout", "0")), 10)


def program(name: str) -> list[str]:
    """Return the words of the command that starts the web server."""
    found = re.findall(r"^(?:CMD exec|entrypoint:) (.+)$", (DEPLOYMENT / name).read_text(), re.M)
    return shlex.split(found[0])


def module_of(text: str) -> types.ModuleType:
    """Return a module of URLs with that text."""
    module = types.ModuleType("urls_of_a_recipe")
    with mock.patch.dict(os.environ, SECRETS):
        exec(text, module.__dict__)
    return module


class RequestTests(TransactionTestCase):
    """What the services send, to URLs as the recipes mount them."""

    def send(self, urls: str, method: str, path: str, **headers: str) -> Any:
        """Return the answer of a site with those URLs."""
        with override_settings(ROOT_URLCONF=module_of(block(f"urls {urls}"))):
            return Client().generic(method, path, headers=headers)

    def assert_runs(self, answer: Any, result: Any) -> None:
        result.refresh()
        self.assertEqual((200, 1), (answer.status_code, json.loads(answer.content)["ran"]))
        self.assertEqual("SUCCESSFUL", result.status)

    def test_app_engine(self):
        """Its cron runs tasks; elsewhere its header is worth nothing."""
        [job] = load("appengine/cron.yaml")["cron"]
        self.assertEqual("every 1 minutes", job["schedule"])
        result = add.enqueue(1, 2)
        header = {"X-Appengine-Cron": "true"}

        refused = self.send("appengine", "GET", job["url"], **header)
        with mock.patch.dict(os.environ, {"GAE_ENV": "standard"}):
            answer = self.send("appengine", "GET", job["url"], **header)

        self.assertEqual(401, refused.status_code)
        self.assert_runs(answer, result)

    def test_vercel(self):
        """Its cron runs tasks, with the secret only."""
        [job] = load("vercel/vercel.json")["crons"]
        Crontab(job["schedule"])
        result = add.enqueue(1, 2)

        refused = self.send("vercel", "GET", job["path"])
        answer = self.send("vercel", "GET", job["path"], Authorization=f"Bearer {TOKEN}")

        self.assertEqual(401, refused.status_code)
        self.assert_runs(answer, result)

    def test_cloud_scheduler(self):
        """The job's request runs tasks of a private service, with the header that it sends."""
        [sweep] = [s for s in gcloud("scheduler jobs create http") if "run.app" in s["--uri"]]
        name, _, value = sweep["--headers"].partition("=")
        self.assertEqual("$DBTASKS_TOKEN", value)
        path = urlsplit(sweep["--uri"]).path
        result = add.enqueue(1, 2)

        refused = self.send("private", sweep["--http-method"], path, Authorization="Bearer x.y.z")
        answer = self.send("private", sweep["--http-method"], path, **{name: TOKEN})

        self.assertEqual(401, refused.status_code)
        self.assert_runs(answer, result)

    def test_a_public_service_of_cloud_run(self):
        """Without a token nothing is run there."""
        self.assertEqual(401, self.send("public", "POST", "/tasks/sweep/").status_code)

    def test_curl(self):
        """The line for Fly sends what the other recipes with a token accept."""
        [words] = [words for words in lines() if words[0] == "curl"]
        options = dict(pairwise(words))
        name, _, value = options["-H"].partition(": ")
        result = add.enqueue(1, 2)

        answer = self.send(
            "vercel",
            options["-X"],
            urlsplit(words[-1]).path,
            **{name: value.replace("$DBTASKS_TOKEN", TOKEN)},
        )

        self.assert_runs(answer, result)


class AzureTests(TransactionTestCase):
    """The function of the timer."""

    def test_it_runs_what_is_due(self):
        """It is imported as Azure does, and called."""
        registered: dict[str, Any] = {}

        class FunctionApp:
            """Takes what azure-functions 1.26 takes."""

            def timer_trigger(self, arg_name, schedule, run_on_startup=None, use_monitor=None):
                def wrap(function):
                    registered.update(arg_name=arg_name, schedule=schedule, function=function)
                    return function

                return wrap

        functions = types.ModuleType("azure.functions")
        functions.FunctionApp = FunctionApp  # type: ignore[attr-defined]
        functions.TimerRequest = object  # type: ignore[attr-defined]
        azure = types.ModuleType("azure")
        azure.functions = functions  # type: ignore[attr-defined]
        modules = {"azure": azure, "azure.functions": functions}
        spec = importlib.util.spec_from_file_location(
            "function_app", DEPLOYMENT / "azure" / "function_app.py"
        )
        assert spec is not None and spec.loader is not None
        with mock.patch.dict(sys.modules, modules):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        result = add.enqueue(1, 2)

        registered["function"](**{registered["arg_name"]: None})

        result.refresh()
        self.assertEqual("SUCCESSFUL", result.status)
        second, *rest = registered["schedule"].split()
        self.assertEqual("0", second)
        Crontab(" ".join(rest))
        minutes = load("azure/host.json")["functionTimeout"].split(":")[1]
        self.assertGreater(int(minutes) * 60, 240)


class ClockInTheDatabaseTests(TestCase):
    """pg_cron and pg_net, as far as PostgreSQL alone can tell."""

    @skipUnless(vendor() == "postgresql", "they are extensions of PostgreSQL")
    def test_the_statement_and_what_it_schedules(self):
        """Both can be run, with functions of their names and arguments."""
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE SCHEMA cron; CREATE SCHEMA net;"
                "CREATE FUNCTION cron.schedule(job_name text, schedule text, command text) "
                "RETURNS text LANGUAGE sql AS 'SELECT command';"
                "CREATE FUNCTION net.http_post(url text, body jsonb DEFAULT '{}', params jsonb "
                "DEFAULT '{}', headers jsonb DEFAULT '{}', timeout_milliseconds int DEFAULT 5000) "
                "RETURNS text LANGUAGE sql AS "
                "'SELECT url || '' '' || (headers ->> ''Authorization'')';"
            )
            cursor.execute(block("sql").replace("%", "%%"))
            [(command,)] = cursor.fetchall()
            cursor.execute(command)

            self.assertEqual(
                [("https://mysite.example.com/tasks/sweep/ Bearer TOKEN",)], cursor.fetchall()
            )


@tag("site")
class StartedTests(SiteTestCase):
    """Programs of the recipes, started as they are."""

    def make_site(self, urls: str = "") -> None:
        manage = "from django.core.management import execute_from_command_line as run\n"
        (self.folder / "manage.py").write_text(f"import sys\n{manage}run(sys.argv)\n")
        # Whose runner would take the tasks.
        (self.folder / "gunicorn.conf.py").unlink()
        if urls:
            (self.folder / "mysite" / "urls.py").write_text(block(f"urls {urls}"))

    def test_gunicorn_runs_tasks_in_requests(self):
        """The commands of Cloud Run and App Engine serve the endpoints."""
        self.make_site("private")
        for name in ("cloudrun/Dockerfile", "appengine/app.yaml"):
            with self.subTest(name):
                port = self.address.split(":")[1]
                words = [word.replace(":$PORT", f"127.0.0.1:{port}") for word in program(name)]
                self.assertEqual("gunicorn", words[0])
                child = self.serve(
                    *(sys.executable, "-m", *words),
                    DJANGO_SETTINGS_MODULE="mysite.settings",
                    **SECRETS,
                )
                child.wait_for("Listening at")
                result = add.enqueue(1, 2)
                answer = self.post("tasks/sweep/", {"X-DBTasks-Token": TOKEN})

                self.assertEqual(1, answer["ran"], child.said)
                self.wait_for_status(result, "SUCCESSFUL")
                child.signal(15)
                self.assertEqual(0, child.end(), child.said)

    def post(self, path: str, headers: dict[str, str]) -> Any:
        request = Request(f"http://{self.address}/{path}", b"", headers, method="POST")
        with urlopen(request, timeout=30) as response:
            return json.load(response)

    def test_cron(self):
        """The line runs tasks; while one runs, the next one does nothing."""
        self.make_site()
        text = (DEPLOYMENT / "crontab").read_text()
        [line] = re.findall(r"^\* \* \* \* \* \w+ (.+)$", text, re.M)
        for path, here in {
            "/srv/mysite": str(self.folder),
            ".venv/bin/python": shlex.quote(sys.executable),
            "/run/lock": str(self.folder),
        }.items():
            self.assertIn(path, line)
            line = line.replace(path, here)
        result = wait_for_file.enqueue(str(self.folder))
        settings = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
        first = self.serve("sh", "-c", line, **settings)
        until((self.folder / "started").exists, "The task")

        second = self.serve("sh", "-c", line, **settings)
        self.assertEqual((1, ""), (second.end(), second.said))
        (self.folder / "go").touch()

        self.assertEqual((0, ""), (first.end(), first.said))
        self.wait_for_status(result, "SUCCESSFUL")

    def test_the_timer_of_systemd(self):
        """Its service runs what is due, and what it fires, and ends."""
        self.make_site()
        [line] = re.findall("^ExecStart=(.+)$", (DEPLOYMENT / "sweep.service").read_text(), re.M)
        result = add.enqueue(1, 2)
        child = self.serve(
            *(sys.executable, *shlex.split(line)[1:]), DJANGO_SETTINGS_MODULE="mysite.settings"
        )

        self.assertEqual(0, child.end(), child.said)
        self.wait_for_status(result, "SUCCESSFUL")
