"""The chat page as `tpimpi serve` shows it: a real browser, server and model, on two ranks."""

from page_browser import ARTICLE, expect, say
from test_commands_serve import serving

pytest_plugins = "page_browser"


def test_a_conversation_with_the_demo_model(browser, mpirun, tmp_path):
    defects = []
    with serving(mpirun, 2, tmp_path, "--port", 0) as server:
        page = browser.new_page()
        page.on("pageerror", lambda error: defects.append(str(error)))
        page.on("console", lambda m: m.type == "error" and defects.append(m.text))
        page.goto(server.url)
        expect(page.locator("#state")).to_have_text("demo")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("24")
        page.get_by_role("button", name="Done").click()
        page.get_by_role("button", name="Live view").click()
        say(page, "ROMEO: what light is that?")
        expect(page.locator(ARTICLE)).to_contain_text("24 tokens · ")
        say(page, "And then?")
        expect(page.locator(ARTICLE).last).to_contain_text("prompt tokens cached")
        ranks = page.get_by_role("complementary", name="Ranks")
        expect(ranks).to_contain_text("rank 1")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("450")
        page.get_by_role("button", name="Done").click()
        page.get_by_role("button", name="New conversation").click()
        say(page, "A long one")
        expect(ranks).to_contain_text("compute")  # of the last seconds, asked for once a second
        page.get_by_role("button", name="New conversation").click()
        say(page, "And one that is stopped", wait=False)
        expect(page.locator(f"{ARTICLE} .text")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator(ARTICLE).last).to_contain_text("stopped")
        page.close()
    assert not defects
