"""The files of demo/deployment, beside those that the tests of their servers start."""

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from unittest import skipUnless

from django.test import SimpleTestCase, tag

from dbtasks.options.runner import FLAGS
from tests.tasks import add

from ..support.processes import ROOT, Child
from ..support.sites import DEPLOYMENT, UWSGI, SiteTestCase, pyuwsgi

DOCS = ROOT / "docs"
PAGE = (DEPLOYMENT / "README.md").read_text()
ANALYZE = shutil.which("systemd-analyze")


def unit(name: str) -> ConfigParser:
    """Return the unit file."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOYMENT / name)
    return parser


class PageTests(SimpleTestCase):
    """What the page says of files and names is what there is."""

    def test_links_lead_somewhere(self):
        """Each link is a file or a heading that exists."""
        headings = {
            re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
            for line in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
        }
        for link in re.findall(r"\]\(([^)]+)\)", PAGE):
            path, _, heading = link.partition("#")
            with self.subTest(link):
                self.assertTrue((DEPLOYMENT / path).exists())
                if not path:
                    self.assertIn(heading, headings)

    def test_every_file_is_spoken_of(self):
        """No file of the folder is left unexplained."""
        for path in DEPLOYMENT.rglob("*"):
            name = str(path.relative_to(DEPLOYMENT))
            if path.is_file() and name != "README.md" and path.suffix != ".pyc":
                self.assertIn(f"[`{name}`]({name})", PAGE)

    def test_the_table_has_every_variable(self):
        """The page and the code agree."""
        shown = set(re.findall(r"^\| `(DBTASKS_\w+)`", PAGE, re.MULTILINE))
        others = {"DBTASKS_VERBOSITY", "DBTASKS_RUNNER", "DBTASKS_LOCK"}

        self.assertEqual({flag.variable for flag in FLAGS.values()} - {None} | others, shown)

    def test_the_documentation_shows_the_same_unit(self):
        """There is one unit file for the runner."""
        pages = [ROOT / "README.md", *DOCS.glob("*.md")]
        block = re.compile(r"^<!-- systemd -->\n```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
        [text] = [text for page in pages for text in block.findall(page.read_text())]

        self.assertEqual((DEPLOYMENT / "taskrunner.service").read_text(), text)


@tag("site")
class UnitTests(SiteTestCase):
    """What systemd would do with the units."""

    @skipUnless(ANALYZE, "needs systemd-analyze")
    def test_systemd_understands_them(self):
        """There is no line in them that systemd does not know."""
        paths = [*DEPLOYMENT.glob("*.service"), *DEPLOYMENT.glob("*.timer")]
        for path in paths:
            text = path.read_text().replace("User=mysite", "User=root")
            text = text.replace("/srv/mysite/.venv/bin/", "/bin/").replace("/srv/mysite", "/tmp")
            text = re.sub("(?<=ExecStart=)/bin/[a-z]+", "/bin/true", text)
            (self.folder / path.name).write_text(text)
        for path in paths:
            done = subprocess.run(
                [str(ANALYZE), "verify", self.folder / path.name],
                capture_output=True,
                text=True,
                check=False,
            )

            self.assertEqual((0, ""), (done.returncode, done.stderr.strip()), path.name)

    def start_unit(self, name: str, **environment: str) -> Child:
        """Start what the unit starts, in the folder of the site."""
        words = shlex.split(unit(name)["Service"]["ExecStart"])
        program = [sys.executable, *words[1:]]
        return self.serve(*program, **environment)

    def test_the_unit_of_the_runner(self):
        """Its command runs tasks; SIGTERM ends it in time, with code 0."""
        service = unit("taskrunner.service")["Service"]
        manage = "from django.core.management import execute_from_command_line as run\n"
        (self.folder / "manage.py").write_text(f"import sys\n{manage}run(sys.argv)\n")
        child = self.start_unit("taskrunner.service", DJANGO_SETTINGS_MODULE="mysite.settings")
        child.wait_for("Stop with Ctrl-C")

        self.wait_for_status(add.enqueue(1, 1), "SUCCESSFUL")
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        grace = re.search(r"--grace (\d+)", service["ExecStart"])
        assert grace is not None
        self.assertGreater(int(service["TimeoutStopSec"]), int(grace[1]))

    @skipUnless(pyuwsgi, "needs pyuwsgi")
    def test_the_unit_of_uwsgi(self):
        """uWSGI tells systemd when it is ready, and ends with code 0 when its master is told to."""
        service = unit("uwsgi.service")["Service"]
        self.assertEqual(("notify", "mixed"), (service["Type"], service["KillMode"]))
        mercy = re.search(r"mule-reload-mercy = (\d+)", (DEPLOYMENT / "uwsgi.ini").read_text())
        assert mercy is not None
        self.assertGreater(int(service["TimeoutStopSec"]), int(mercy[1]))
        self.assertGreater(int(mercy[1]), 30)
        words = shlex.split(service["ExecStart"])
        script = self.folder / Path(words[0]).name
        script.write_text(UWSGI)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(self.folder / "notify"))
            systemd.settimeout(30)
            child = self.serve(
                *(sys.executable, script, *words[1:]), NOTIFY_SOCKET=str(self.folder / "notify")
            )
            while b"READY=1" not in systemd.recv(4096):
                pass
        self.runs_in(child)

        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
