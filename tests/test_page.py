"""The chat page in a real browser without a screen, against a server that imitates `tpimpi serve`."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest
from page_server import PageServer

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra test)")
expect = playwright.expect

FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
ARTICLE = "article.assistant"


def chromium() -> str:
    """Return the browser; in CI, as root, it is installed first."""
    if shutil.which("chromium") is None and "CI" in os.environ and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-q", "chromium"], check=True)
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
    return page.evaluate("Object.fromEntries(Object.entries(localStorage))")


def test_a_conversation_streams(show, server):
    page = show()
    server.pieces = ["One", " two", 1.0, " three"]
    say(page, "Count, <please>", wait=False)
    answer = page.locator(ARTICLE)
    expect(answer).to_contain_text("One two")
    assert "three" not in answer.inner_text()  # it is shown as it comes
    expect(answer).to_have_attribute("aria-busy", "true")
    expect(answer).to_contain_text("One two three")
    expect(answer).to_contain_text("3 tokens · ")
    expect(answer).to_contain_text("tokens/s · first after")
    expect(answer).to_contain_text("32 of 40 prompt tokens cached")
    expect(page.get_by_role("status")).to_contain_text("One two three")  # told once it is whole
    server.finish = "length"
    say(page, "Go on")
    expect(answer.last).to_contain_text("cut off at the most tokens")
    first, second = server.requests
    assert first["messages"] == [{"role": "user", "content": "Count, <please>"}]
    assert first["model"] == "llama-3.2-3b"
    assert first["stream"] and first["stream_options"] == {"include_usage": True}
    assert "temperature" not in first and "max_tokens" not in first  # silent: the model's own
    roles = [m["role"] for m in second["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "One two three"
    expect(page.locator("h1")).to_have_text("Count, <please>")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_is_seen_by_the_server(show, server, how):
    page = show()
    server.pieces = ["word ", 0.05] * 400
    say(page, "Talk", wait=False)
    expect(page.locator(ARTICLE)).to_contain_text("word word")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert server.left.wait(5)
    expect(page.locator(ARTICLE)).to_contain_text("stopped")
    expect(page.get_by_role("status")).to_have_text("Stopped")
    text = page.locator(f"{ARTICLE} .text").inner_text()
    assert text.startswith("word word")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_a_slow_start_is_told(show, server):
    server.begins_after = 2.5
    page = show()
    say(page, "Hello", wait=False)
    expect(page.get_by_label("The answer is on its way")).to_be_visible()
    expect(page.locator(ARTICLE)).to_contain_text("2 s, reading the messages")
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")
    expect(page.get_by_label("The answer is on its way")).to_have_count(0)


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)> <iframe src='javascript:alert(3)'>\n\n",
    "[a](javascript:alert(4)) [b](data:text/html,<script>alert(5)</script>) [c](JaVaScRiPt:alert(6))\n",
    "[d](//evil.example) ![e](https://evil.example/pixel.png) [f](https://ok.example/?a=\"onx=1) "
    "<https://auto.example> https://bare.example/x.\n\n",
    "`<b>code</b>` **<b>bold</b>**\n\n```html\"><script>\n<script>alert(7)</script>\n```\n\n",
    "| <img src=x onerror=alert(8)> | b |\n| --- | --- |\n| <b>x</b> | [g](vbscript:x) |\n\n",
    "<think>",
]  # fmt: skip


def test_text_of_the_model_stays_text(show, server):
    page = show()
    server.pieces = [*HOSTILE, "<img src=x onerror=alert(9)></think>", "done"]
    evil = "<img src=x onerror=alert(10)><script>alert(11)</script>"
    say(page, evil)
    answer = page.locator(ARTICLE)
    expect(answer).to_contain_text("<script>alert(1)</script><img src=x onerror=alert(2)>")
    assert page.locator("article :is(script, img, iframe, b)").count() == 0
    links = answer.locator("a").evaluate_all("all => all.map(a => [a.protocol, a.rel, a.target])")
    assert len(links) == 4, links  # e, which isn't loaded, f, and the two addresses
    assert all(p == "https:" and "noopener" in rel and t == "_blank" for p, rel, t in links)
    assert answer.locator("pre code").text_content() == "<script>alert(7)</script>"
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Name").fill(evil)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(evil)
    page.reload()
    expect(page.locator("h1")).to_have_text(evil)
    expect(page.locator("#chats .name")).to_have_text(evil)
    assert page.locator("body :is(img, iframe)").count() == 0
    page.get_by_role("button", name="Live view").click()
    expect(page.locator("#list")).to_contain_text("<b>old</b>-laptop")


def test_markdown(show, server):
    page = show()
    server.pieces = [
        "# Title\n\nA *b* **c `d`** snake_case_name 2 * 3 * 4\nnext line\n\n",
        "1. one\n2. two\n   - inner\n\n     more\n3. three\n\n> quoted\n\n---\n\n",
        "```py\nif x:\n\n    **y**\n```\n\n| a | b |\n|---|---|\n| 1 | `2` |\n\n## Last\n- [ok](http://a.example/b_(c))",
    ]  # fmt: skip
    say(page, "All of it")
    text = page.locator(f"{ARTICLE} .text")
    tags = text.evaluate("node => [...node.children].map(n => n.localName).join(' ')")
    assert tags == "h3 p ol blockquote hr div div h4 ul"
    assert text.locator("p em").first.inner_text() == "b"
    assert text.locator("p em").count() == 1  # not in names, not in products
    assert text.locator("strong code").inner_text() == "d"
    assert text.locator("ol > li").count() == 3
    assert text.locator("ol > li li p").count() == 2
    assert text.locator("pre code").text_content() == "if x:\n\n    **y**"
    assert text.locator("td code").inner_text() == "2"
    assert text.locator("a").get_attribute("href") == "http://a.example/b_(c)"


@pytest.mark.parametrize("text", ["> " * 5000, "*" * 9000, "[" * 9000, "- " * 4000, "a_ *`" * 3000])
def test_no_text_holds_the_page(show, server, text):
    page = show()
    server.pieces = [text, "\n\nend"]
    begin = time.monotonic()
    say(page, "Do your worst")
    expect(page.locator(f"{ARTICLE} .text > p").last).to_have_text("end")
    assert time.monotonic() - begin < 5


def test_unchanged_blocks_stay_in_place(show, server):
    page = show()
    server.pieces = ["first\n\n", "second", 1.0, " more\n\nthird"]
    say(page, "Three", wait=False)
    expect(page.locator(f"{ARTICLE} p").nth(1)).to_have_text("second")
    page.locator(f"{ARTICLE} p").first.evaluate("node => node.dataset.mark = 'same'")
    expect(page.locator(f"{ARTICLE} p").nth(2)).to_have_text("third")
    assert page.locator(f"{ARTICLE} p[data-mark=same]").count() == 1  # a selection would live on


@pytest.mark.parametrize("begin", ["<think>", ""])
def test_thoughts_are_folded_and_not_sent_back(show, server, begin):
    page = show()
    server.pieces = [begin, "secret\nplan", 0.3, "</thi", "nk>\n", "Out ", "`<think>` loud"]
    say(page, "Think")
    details = page.locator("details.think")
    expect(details).to_have_count(1)
    assert details.evaluate("node => node.open") is False
    expect(page.get_by_text("secret")).to_be_hidden()
    page.get_by_text("Thoughts", exact=True).click()
    expect(page.get_by_text("secret")).to_be_visible()
    say(page, "And?")
    assert server.requests[1]["messages"][1]["content"] == "Out `<think>` loud"


def test_keyboard_alone(show, server):
    page = show()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")
    assert server.requests[0]["messages"][0]["content"] == "line\nline two"
    expect(page.get_by_label("Message", exact=True)).to_be_focused()

    def walk(name, most=40):
        named = "(({ ariaLabel, textContent }) => ariaLabel ?? textContent)(document.activeElement)"
        for _ in range(most):
            page.keyboard.press("Shift+Tab")
            if page.evaluate(named) == name:
                return
        raise AssertionError(f"{name} is not reached by the keyboard")

    walk("Skip to the message box")
    seen = "getComputedStyle(document.activeElement).clipPath"
    assert page.evaluate(seen) == "none"  # it is seen where it has the focus
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    walk("Edit")
    page.keyboard.press("Enter")
    expect(page.get_by_label("The answer", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit").last).to_be_focused()
    walk("Settings")
    page.keyboard.press("Enter")
    expect(page.get_by_label("System prompt")).to_be_focused()
    page.keyboard.type("Be brief.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.type("More")
    page.keyboard.press("Enter")
    expect(page.locator(ARTICLE)).to_have_count(2)
    assert server.requests[1]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_again_edit_and_delete(show, server):
    page = show()
    say(page, "First")
    server.pieces = ["Other."]
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(ARTICLE)).to_contain_text("Other.")
    assert server.requests[1]["messages"] == server.requests[0]["messages"]
    page.locator("article.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("Changed")
    page.locator("form.edit").get_by_role("button", name="Send").click()
    expect(page.locator("article.user")).to_contain_text("Changed")
    expect(page.locator(ARTICLE)).to_have_count(1)
    assert server.requests[2]["messages"] == [{"role": "user", "content": "Changed"}]
    page.locator(ARTICLE).get_by_role("button", name="Edit").click()
    page.get_by_label("The answer", exact=True).fill("Mine")
    page.get_by_role("button", name="Keep").click()
    say(page, "Second")
    assert server.requests[3]["messages"][1]["content"] == "Mine"
    page.locator(ARTICLE).last.get_by_role("button", name="Delete").click()
    page.locator("#ask").get_by_role("button", name="Delete").click()
    expect(page.locator("article")).to_have_count(3)
    page.get_by_role("button", name="Get an answer").click()
    expect(page.locator(ARTICLE)).to_have_count(2)
    page.locator("article.user").last.get_by_role("button", name="Delete").click()
    page.locator("#ask").get_by_role("button", name="Cancel").click()
    expect(page.locator("article")).to_have_count(4)


def test_copy(show, server):
    page = show(permissions=["clipboard-read", "clipboard-write"])
    server.pieces = ["<think>no</think>\n", "```\na = 1\n```\n", "text"]
    say(page, "Code")
    page.get_by_role("button", name="Copy this code").click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "a = 1"
    page.locator(ARTICLE).get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_timeout(200)
    assert page.evaluate("navigator.clipboard.readText()") == "```\na = 1\n```\ntext"


def test_conversations_are_kept_and_forgotten(show, server, tmp_path):
    page = show()
    say(page, "Alpha")
    page.get_by_role("button", name="New conversation").click()
    say(page, "Beta")
    page.reload()
    expect(page.locator("h1")).to_have_text("Beta")
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")
    expect(page.locator(ARTICLE)).to_contain_text("2 tokens")
    page.get_by_role("button", name="Alpha").click()
    expect(page.locator("article.user")).to_have_text("Alpha")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    titles = {one["title"] for one in json.loads(file.read_text())["conversations"]}
    assert titles == {"Alpha", "Beta"}
    page.locator("#chats").get_by_role("button", name="Delete").click()
    page.locator("#ask").get_by_role("button", name="Delete").click()
    expect(page.locator("#chats li")).to_have_count(1)
    page.evaluate("localStorage.other = 'stays'")
    page.get_by_role("button", name="Forget everything").click()
    with page.expect_navigation():
        page.locator("#ask").get_by_role("button", name="Forget everything").click()
    expect(page.locator("#chats li")).to_have_count(0)
    assert "Alpha" not in str(kept(page)) and kept(page)["other"] == "stays"
    page.locator("#file").set_input_files(file)
    expect(page.locator("#notice")).to_contain_text("2 conversations were imported.")
    page.get_by_role("button", name="Beta").click()
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")


@pytest.mark.parametrize(
    "text", ["no JSON", "3", '{"conversations": [{"messages": [{"role": "root", "content": 3}]}]}']
)
def test_a_file_that_is_none_of_ours_is_refused(show, tmp_path, text):
    page = show()
    file = tmp_path / "other.json"
    file.write_text(text)
    page.locator("#file").set_input_files(file)
    expect(page.locator("#notice")).to_contain_text("other.json is not a file of conversations")
    expect(page.locator("#chats li")).to_have_count(0)


def test_a_reload_in_the_middle_keeps_what_came(show, server):
    page = show()
    server.pieces = ["half ", 30.0]
    say(page, "Long", wait=False)
    expect(page.locator(ARTICLE)).to_contain_text("half")
    page.reload()
    expect(page.locator(ARTICLE)).to_contain_text("half")
    expect(page.locator(ARTICLE)).to_contain_text("interrupted")
    server.pieces = ["whole"]
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(ARTICLE)).to_contain_text("whole")


def test_settings_are_sent(show, server):
    page = show()
    page.get_by_role("button", name="Settings").click()
    choices = {"Temperature": "0.5", "Top p": "0.8", "Most tokens": "7", "Seed": "11"}
    for label, value in choices.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Done").click()
    page.reload()
    say(page, "Go")
    sent = server.requests[0]
    wanted = {"temperature": 0.5, "top_p": 0.8, "max_tokens": 7, "seed": 11}
    assert {name: sent[name] for name in wanted} == wanted
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("9")  # out of range: the last good one stays
    assert json.loads(kept(page)["tpimpi.settings"])["temperature"] == "0.5"


def test_key(show, server):
    server.key = "hush"
    page = show()
    page.get_by_role("button", name="Enter the key").click()
    page.get_by_label("API key").fill("hush")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#state")).to_have_text("llama-3.2-3b")
    say(page, "Hello")
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")


def test_loading(show, server):
    server.loading = {"status": "loading", "doing": "cutting shards", "fraction": 0.4}
    page = show()
    expect(page.locator("#health")).to_contain_text("cutting shards, 40\u00a0%")
    assert page.get_by_role("progressbar").evaluate("node => node.value") == 0.4
    page.get_by_label("Message", exact=True).fill("Early")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    page.keyboard.press("Enter")
    server.loading = None
    expect(page.locator("#health")).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text("The model is ready")
    assert not server.requests
    page.keyboard.press("Enter")  # what was typed meanwhile is there yet
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")


def test_an_error_is_the_servers_sentence_and_can_be_tried_again(show, server):
    page = show()
    server.refusal = (429, "The queue is full: 64 requests wait.")
    say(page, "Hello")
    expect(page.locator(f"{ARTICLE} .error")).to_contain_text("The queue is full: 64 requests wait.")
    expect(page.get_by_role("status")).to_contain_text("The queue is full")
    server.refusal = None
    say(page, "Still there?")  # turns alternate though the first had no answer
    question = "Hello\n\nStill there?"
    assert server.requests[1]["messages"] == [{"role": "user", "content": question}]
    server.fails_after = 1
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(f"{ARTICLE} .error").last).to_contain_text("Rank 1 on old-laptop has died.")
    expect(page.locator(ARTICLE).last).to_contain_text("Hello")
    server.fails_after = None
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(ARTICLE).last).to_contain_text("Hello there.")


def test_a_server_that_dies_in_the_middle(show, server):
    page = show()
    server.dies_after = 1
    server.loading = {"status": "stopping"}
    say(page, "Hello", wait=False)
    expect(page.locator(f"{ARTICLE} .error")).to_contain_text("lost in the middle of this answer")
    expect(page.locator(ARTICLE)).to_contain_text("Hello")
    expect(page.locator("#health")).to_contain_text("takes no messages now: it is stopping")
    server.dies_after = server.loading = None
    expect(page.locator("#notice")).to_contain_text("The server is back.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(ARTICLE)).to_contain_text("Hello there.")


def test_the_ranks(show):
    page = show()
    page.get_by_role("button", name="Live view").click()
    ranks = page.get_by_role("complementary", name="Ranks")
    expect(ranks).to_contain_text("KV pages: 37 used, 120 cached, of 512")
    expect(ranks).to_contain_text("Peak 2.40 GiB of 3.00 GiB budget")
    expect(ranks).to_contain_text("Peak 1.20 GiB of 1.40 GiB planned")
    expect(ranks).to_contain_text(re.compile(r"compute \d+ ms"))
    shares = ranks.locator("section .share:not(.thin)").first.locator("i")
    page.wait_for_timeout(1500)
    grown = shares.evaluate_all("all => all.map(i => [i.className, Number(i.style.flexGrow)])")
    parts = dict(grown)
    assert list(parts) == ["compute", "disk", "network", "late", "idle"]
    assert sum(parts.values()) == pytest.approx(1)
    assert parts["compute"] == pytest.approx(0.55, abs=0.01)
    assert parts["network"] == pytest.approx(0.16, abs=0.01)  # without waiting for slower ranks
    page.get_by_role("button", name="Close the live view").click()
    expect(ranks).to_be_hidden()
    expect(page.get_by_role("button", name="Live view")).to_be_focused()


def test_phone(show, server):
    page = show(**PHONE)
    server.pieces = ["```\n" + "x" * 300 + "\n```\n\n" + "y" * 300 + "\n\n| a |" + " b |" * 30]
    server.pieces.append("\n|---|" + "---|" * 30 + "\n| 1 |" + " 22222 |" * 30)
    say(page, "z" * 300)

    def sound():
        wide = "[document.documentElement, document.querySelector('#log')]"
        over = page.evaluate(f"{wide}.map(n => n.scrollWidth - n.clientWidth)")
        box = page.get_by_label("Message", exact=True).bounding_box()
        height = page.evaluate("visualViewport.height")
        return over == [0, 0] and box["y"] + box["height"] <= height

    assert sound()
    page.set_viewport_size({"width": 360, "height": 400})  # the keyboard has risen
    page.wait_for_timeout(200)
    assert sound()
    page.set_viewport_size(PHONE["viewport"])
    for opener, name in (("Conversations", "Conversations"), ("Live view", "Ranks")):
        page.get_by_role("button", name=opener).first.click()
        drawer = page.get_by_role("complementary", name=name)
        expect(drawer.get_by_role("button", name=re.compile("^Close"))).to_be_focused()
        assert page.locator("main").evaluate("node => node.inert")
        assert sound()
        page.keyboard.press("Escape")
        expect(drawer).to_be_hidden()
        assert not page.locator("main").evaluate("node => node.inert")
    small = page.evaluate(
        "[...document.querySelectorAll('header button, #form button, .actions button')]"
        ".map(b => b.getBoundingClientRect()).filter(r => Math.min(r.width, r.height) < 24).length"
    )
    assert small == 0  # WCAG 2.2, 2.5.8
    font = page.evaluate("parseFloat(getComputedStyle(document.querySelector('#input')).fontSize)")
    assert font >= 16  # else iOS zooms in


CONTRAST = """scheme => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = colours => {
    canvas.clearRect(0, 0, 1, 1);
    for (const one of colours) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255);
  };
  const light = rgb => rgb.map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.checkVisibility({ visibilityProperty: true, opacityProperty: true })
        || node.closest(".sr, :disabled, noscript, .skip")) continue;
    const under = [];
    for (let at = node; at; at = at.parentElement) under.unshift(getComputedStyle(at).backgroundColor);
    const back = paint(under), ink = paint([...under, getComputedStyle(node).color]);
    const [a, b] = [light(back), light(ink)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    found.push([ratio, node.className || node.id || node.localName, node.textContent.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_themes(show, server, scheme):
    page = show(color_scheme=scheme)
    back = "getComputedStyle(document.body).backgroundColor"
    server.pieces = ["<think>why</think>\n# T\n> q\n\n[a](https://b.example) `c`\n```\nd\n```\n- e"]
    say(page, "Colours")
    server.refusal = (500, "A sentence.")
    say(page, "Error")
    page.get_by_role("button", name="Live view").click()
    expect(page.locator("#list .card")).to_have_count(2)
    page.locator("details.think summary").click()
    for _ in range(2):  # the system's theme, then the other one by the switch
        ratios = page.evaluate(CONTRAST)
        assert len(ratios) > 30
        assert not [one for one in ratios if one[0] < 4.5]
        before = page.evaluate(back)
        page.get_by_role("button", name="Dark theme").click()
        assert page.evaluate(back) != before
    page.get_by_role("button", name="Dark theme").click()
    chosen = page.evaluate(back)
    page.reload()
    assert page.evaluate(back) == chosen  # the switch is remembered


def test_structure_for_assistive_technology(show, server):
    page = show(reduced_motion="reduce")
    server.pieces = ["# Heading\n\ntext"]
    say(page, "Hello")
    page.get_by_role("button", name="Live view").click()
    for role, count in (("main", 1), ("banner", 0), ("navigation", 1), ("complementary", 2)):
        assert page.get_by_role(role).count() == count or role == "banner"
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select, dialog, article, [role=region]")]
        .filter(n => !n.hidden && n.value !== "yes")
        .filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length || n.getAttribute("aria-labelledby")))
        .map(n => n.outerHTML)"""
    )  # fmt: skip
    assert not nameless
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(n => n.id)")
    assert len(ids) == len(set(ids))
    levels = page.evaluate(
        "[...document.querySelectorAll('main :is(h1, h2, h3, h4)')].filter(n => n.checkVisibility())"
        ".map(n => Number(n.localName[1]))"
    )
    assert levels == [1, 2, 3]
    live = page.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert live.count() == 1  # each token isn't told
    assert page.evaluate("document.documentElement.lang") == "en"
    moving = "document.getAnimations().filter(a => a.playState === 'running').length"
    assert page.evaluate(moving) == 0


def test_nothing_in_the_file_runs_outside_the_policy(show):
    page = show()
    source = page.evaluate("fetch('/').then(r => r.text())")
    assert not re.search(r"\son\w+=\"|\sstyle=\"|innerHTML|insertAdjacentHTML|outerHTML", source)
    assert source.count("<script") == source.count("<style") == 1
    addresses = set(re.findall(r"https?://[\w.]+", source))
    assert addresses <= {"http://www.w3.org"}  # the names of SVG
