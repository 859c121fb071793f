"""What the chat page keeps in the browser: conversations, drafts of them, settings."""

import json

import pytest

from page_browser import ARTICLE, expect, kept, say

pytest_plugins = "page_browser"


def test_again_edit_and_delete(show, server):
    page = show()
    say(page, "First")
    server.pieces = ["Other."]
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(ARTICLE)).to_contain_text("Other.")
    assert server.requests[1]["messages"] == server.requests[0]["messages"]
    page.locator("article.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("Changed")
    server.pieces = ["New."]
    page.locator("form.edit").get_by_role("button", name="Send").click()
    expect(page.locator("article.user")).to_contain_text("Changed")
    expect(page.locator(ARTICLE)).to_contain_text("New.")
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


def test_an_answer_goes_on_while_another_conversation_is_shown(show, server):
    page = show()
    server.pieces = ["begin ", 1.5, "end"]
    say(page, "Alpha", wait=False)
    expect(page.locator(ARTICLE)).to_contain_text("begin")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_role("status")).to_contain_text("end")
    expect(page.locator("article")).to_have_count(0)
    page.get_by_role("button", name="Alpha").click()
    expect(page.locator(ARTICLE)).to_contain_text("begin end")
    expect(page.locator(ARTICLE)).to_contain_text("2 tokens")


def test_two_tabs_are_in_step(show, server):
    page = show()
    other = page.context.new_page()
    other.goto(server.url)
    say(page, "Alpha")
    other.get_by_role("button", name="Alpha").click()
    expect(other.locator(ARTICLE)).to_contain_text("Hello there.")
    say(other, "Beta")
    expect(page.locator(ARTICLE)).to_have_count(2)
    page.get_by_role("button", name="Forget everything").click()
    page.locator("#ask").get_by_role("button", name="Forget everything").click()
    expect(other.locator("article")).to_have_count(0)
    expect(other.locator("#chats li")).to_have_count(0)


def test_what_is_typed_outlives_a_reload(show, server):
    page = show()
    page.get_by_label("Message", exact=True).fill("half a thought")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")


def test_a_full_store_is_told(show, server):
    page = show()
    page.evaluate("localStorage.other = 'x'.repeat(5 * 1024 * 1024 - 600)")
    server.pieces = ["y" * 2000]
    say(page, "Alpha")
    expect(page.locator("#notice")).to_contain_text("no room to keep more")
    expect(page.locator(ARTICLE)).to_contain_text("yyy")  # the conversation goes on without it


@pytest.mark.parametrize("which", ["this tab", "the other tab"])
def test_what_is_forgotten_while_it_is_written_stays_forgotten(show, server, which):
    page = show()
    server.pieces = ["secret ", 0.1] * 200
    say(page, "Alpha", wait=False)
    expect(page.locator(ARTICLE)).to_contain_text("secret secret")
    by = page
    if which == "the other tab":
        by = page.context.new_page()
        by.goto(server.url)
    by.get_by_role("button", name="Forget everything").click()
    by.locator("#ask").get_by_role("button", name="Forget everything").click()
    expect(page.locator("article")).to_have_count(0)
    assert server.left.wait(5)
    page.wait_for_timeout(1500)
    assert "secret" not in str(kept(page)) and "Alpha" not in str(kept(page))
