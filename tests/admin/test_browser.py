"""The demo's site, served by ``serve -k``, in a real browser: Chromium, driven by Playwright."""

import os
import re
import shutil
from contextlib import contextmanager
from typing import Any
from unittest import skipUnless

from django.conf import global_settings
from django.contrib.auth.models import User
from django.test import override_settings, tag

from ..support.processes import ProcessTestCase
from ..support.sites import free_port, is_open
from ..support.waiting import until

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# In CI it must not be missing.
IS_THERE = bool(sync_playwright and CHROMIUM) or "CI" in os.environ
# Milliseconds.
MAX_WAIT = 30_000


@skipUnless(IS_THERE, "needs Playwright, and Chromium from 'apt-get install chromium'")
@tag("site")
class BrowserTests(ProcessTestCase):
    """What a visitor sees."""

    def setUp(self) -> None:
        super().setUp()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.complaints: list[str] = []
        # As the demo's settings hash passwords, not those of the tests.
        with override_settings(PASSWORD_HASHERS=global_settings.PASSWORD_HASHERS):
            User.objects.create_superuser("ada", password="lovelace")

    def start_site(self) -> None:
        """Start the demo's site with a runner, and wait until both are there."""
        address = self.url.removeprefix("http://")
        site = self.start("serve", address, "-k", 4, DJANGO_SETTINGS_MODULE="demo.settings")
        site.wait_for("Worker ")
        until(lambda: is_open(address), "The site")

    @contextmanager
    def page(self, **options: Any) -> Any:
        """Yield a page of a new browser; nothing may end in its console."""
        # A browser's sandbox needs a user other than root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
            context = browser.new_context(**options)
            context.set_default_timeout(MAX_WAIT)
            page = context.new_page()
            page.on("console", lambda message: self.complaints.append(message.text))
            page.on("pageerror", lambda error: self.complaints.append(str(error)))
            yield page
            browser.close()
        self.assertEqual([], self.complaints)

    def enqueue(self, page: Any, kind: str, name: str, count: int = 1) -> Any:
        """Fill in the form and send it; return the newest task."""
        page.get_by_label(kind).check()
        page.get_by_label("Name").fill(name)
        page.get_by_label("How many").fill(str(count))
        page.get_by_role("button", name="Enqueue").click()
        line = page.locator("#lines > li").first
        expect(line).to_contain_text(name, timeout=MAX_WAIT)
        return line

    def test_a_visitor_enqueues_and_watches(self):
        """From the admin to the page: enqueue, see it finish, see another fail, cancel a third."""
        self.start_site()
        with self.page() as page:
            page.goto(f"{self.url}/admin/")
            page.get_by_label("Username").fill("ada")
            page.get_by_label("Password").fill("lovelace")
            page.get_by_role("button", name="Log in").click()
            page.get_by_role("link", name="Tasks", exact=True).click()
            expect(page.locator("#changelist")).to_be_visible()

            page.goto(self.url)
            line = self.enqueue(page, "Quick", "<b>Grace</b>", 2)
            expect(line).to_contain_text("Hello, <b>Grace</b> 2!", timeout=MAX_WAIT)
            expect(line).to_contain_text("Done")
            line = self.enqueue(page, "Failing", "Edsger")
            expect(line).to_contain_text("RuntimeError: Edsger stumbled.", timeout=MAX_WAIT)
            line = self.enqueue(page, "Slow", "Barbara")
            expect(line.get_by_role("progressbar")).to_be_visible(timeout=MAX_WAIT)
            line.get_by_role("button", name="Cancel").click()
            expect(line).to_contain_text("Cancelled", timeout=MAX_WAIT)

            page.goto(f"{self.url}/admin/dbtasks/scheduledtask/")
            page.locator("#result_list a").first.click()
            expect(page.get_by_text("Barbara")).to_be_visible()

    def test_without_a_script_and_on_a_narrow_screen(self):
        """The form and a link do the same; nothing is wider than the screen."""
        self.start_site()
        narrow = {"width": 320, "height": 640}
        with self.page(java_script_enabled=False, viewport=narrow) as page:
            page.goto(self.url)
            self.enqueue(page, "Quick", "Ada")

            def is_done() -> bool:
                page.get_by_role("link", name="Refresh").click()
                return page.get_by_text("Hello, Ada!").is_visible()

            self.assertTrue(any(is_done() for _ in range(100)))
        with self.page(viewport=narrow, color_scheme="dark") as page:
            page.goto(self.url)
            expect(page.get_by_text("Hello, Ada!")).to_be_visible()
            width = page.evaluate("document.documentElement.scrollWidth")
            self.assertLessEqual(width, narrow["width"])
            back = page.evaluate("getComputedStyle(document.body).backgroundColor")
            self.assertLess(int(re.findall(r"\d+", back)[0]), 60)
