"""A real browser without a screen for the tests of the chat page, and a server that it talks to."""

import os
import shutil
import subprocess

import pytest

from page_server import PageServer

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra test)")
expect = playwright.expect

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
APT = ["apt-get", "install", "-y", "-q", "--no-install-recommends"]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
ARTICLE = "article.assistant"


def chromium() -> str:
    """Return the browser; in CI, as root, it is installed first."""
    if shutil.which("chromium") is None and "CI" in os.environ and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run([*APT, "chromium", "fonts-liberation"], check=True)
    path = shutil.which("chromium")
    if path is None:
        assert "CI" not in os.environ, "no Chromium, and only root can install it"
        pytest.skip("no Chromium here (apt-get install chromium)")
    return path


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server():
    server = PageServer()
    yield server
    server.close()


@pytest.fixture
def show(browser, server):
    """Open the page, with the defects it tells of in a list that must be empty at the end."""
    contexts, defects = [], []

    def show(**choices):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **choices})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: defects.append(str(error)))
        page.on("dialog", lambda dialog: (defects.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda m: "Content Security" in m.text and defects.append(m.text))
        page.on("request", lambda r: elsewhere(r.url) and defects.append(r.url))
        page.goto(server.url)
        return page

    def elsewhere(url):
        return not url.startswith((server.url, "data:", "blob:"))

    yield show
    for context in contexts:
        context.close()
    assert not defects


def say(page, text, wait=True):
    """Send a message; with `wait`, until its answer is whole."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    if wait:
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def kept(page) -> dict:
    """Return what the page has written to its store in the browser."""
    return page.evaluate("Object.fromEntries(Object.entries(localStorage))")
