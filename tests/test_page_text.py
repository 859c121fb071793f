"""Text of the model on the chat page: Markdown, thoughts, and what wants to be more than text."""

import re
import time

import pytest

from page_browser import ARTICLE, expect, say

pytest_plugins = "page_browser"


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)> <iframe src='javascript:alert(3)'>\n\n",
    "[a](javascript:alert(4)) [b](data:text/html,<script>alert(5)</script>)\n",
    "[c](JaVaScRiPt:alert(6))\n",
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


def test_nothing_in_the_file_runs_outside_the_policy(show):
    page = show()
    source = page.evaluate("fetch('/').then(r => r.text())")
    assert not re.search(r"\son\w+=\"|\sstyle=\"|innerHTML|insertAdjacentHTML|outerHTML", source)
    assert source.count("<script") == source.count("<style") == 1
    addresses = set(re.findall(r"https?://[\w.]+", source))
    assert addresses <= {"http://www.w3.org"}  # the names of SVG
