"""The chat page in a browser: answers that come, are stopped, fail, and begin late."""

import pytest

from page_browser import ARTICLE, expect, say

pytest_plugins = "page_browser"


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
    server.refusal = (429, "The queue is full: 64 requests wait.", "busy")
    say(page, "Hello")
    expect(page.locator(f"{ARTICLE} .error")).to_contain_text(
        "The queue is full: 64 requests wait."
    )
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


def test_a_full_context_leads_to_a_new_conversation(show, server):
    page = show()
    server.refusal = (400, "600 tokens, and the context 512", "context_length_exceeded")
    say(page, "Too much")
    answer = page.locator(ARTICLE)
    expect(answer).to_contain_text("600 tokens, and the context 512")
    answer.get_by_role("button", name="New conversation").click()
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_role("button", name="Too much")).to_be_visible()
