"""The chat page for everyone: keyboards, screen readers, phones, both themes, the live view."""

import re

import pytest

from page_browser import ARTICLE, PHONE, expect, say

pytest_plugins = "page_browser"


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
    expect(page.locator(ARTICLE).nth(1)).to_contain_text("Hello there.")
    assert server.requests[1]["messages"][0] == {"role": "system", "content": "Be brief."}


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
    ranks.locator("h3").first.evaluate("node => node.dataset.mark = 'same'")
    page.wait_for_timeout(1500)
    assert ranks.locator("h3[data-mark=same]").count() == 1  # a reader's place in it is kept
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
        far = page.evaluate(
            "Math.max(...[...document.querySelectorAll('main button, #input')]"
            ".map(n => n.getBoundingClientRect().right))"
        )
        return over == [0, 0] and box["y"] + box["height"] <= height and far <= 360

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
    for (let at = node; at; at = at.parentElement)
      under.unshift(getComputedStyle(at).backgroundColor);
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
    server.refusal = (500, "A sentence.", None)
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
    for role, count in (("main", 1), ("navigation", 1), ("complementary", 2)):
        assert page.get_by_role(role).count() == count
    nameless = page.evaluate(
        """[...document.querySelectorAll(
          "button, input, textarea, select, dialog, article, [role=region]")]
        .filter(n => !n.hidden && n.value !== "yes")
        .filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length
                       || n.getAttribute("aria-labelledby")))
        .map(n => n.outerHTML)"""
    )  # fmt: skip
    assert not nameless
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(n => n.id)")
    assert len(ids) == len(set(ids))
    levels = page.evaluate(
        "[...document.querySelectorAll('main :is(h1, h2, h3, h4)')]"
        ".filter(n => n.checkVisibility()).map(n => Number(n.localName[1]))"
    )
    assert levels == [1, 2, 3]
    live = page.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert live.count() == 1  # each token isn't told
    assert page.evaluate("document.documentElement.lang") == "en"
    moving = "document.getAnimations().filter(a => a.playState === 'running').length"
    assert page.evaluate(moving) == 0


def test_ranks_that_sleep_are_idle(show, server):
    asleep = server.ranks()
    server.ranks = lambda: asleep
    page = show()
    page.get_by_role("button", name="Live view").click()
    ranks = page.get_by_role("complementary", name="Ranks")
    expect(ranks.locator("section").first).to_contain_text("idle 100 %")
    expect(ranks).to_contain_text("0.00 tokens/s")
