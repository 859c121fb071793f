"""OpenAI's own client against the server: what it asks for it gets, in the types that it knows."""

import openai
import pytest

from serving import CONTEXT, SAID, face, script, until
from tpimpi.errors import MachineError

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
MESSAGES = [{"role": "user", "content": "Who is there?"}]


def client(server, **more):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **more)


@pytest.fixture(scope="module")
def shared():
    """(client, service) of a server that each test leaves as it was."""
    with face() as (server, service):
        yield client(server), service


def asked(service):
    """What the engine was last asked for."""
    return service.texts[-1]


def test_a_chat(shared):
    client, service = shared
    answer = client.chat.completions.create(model="demo", messages=MESSAGES)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SAID)
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.model == "demo" and answer.id.startswith("chatcmpl-")
    prompt = service.tokenizer.encode("<s>User: Who is there?\nAssistant:", add_bos=False)
    assert asked(service).prompt_ids == prompt
    said = len(service.tokenizer.encode(SAID, add_bos=False))
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == said
    assert answer.usage.total_tokens == len(prompt) + said
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_a_streamed_chat_is_the_same(shared):
    client, _ = shared
    stream = client.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    *told, last = chunks
    assert told[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == SAID
    assert [chunk.choices[0].finish_reason for chunk in told][-1] == "stop"
    assert last.choices == [] and last.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_of_a_stream_is_told_only_when_it_is_asked_for(shared):
    client, _ = shared
    chunks = list(client.chat.completions.create(model="demo", messages=MESSAGES, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_parts_of_text_and_a_developer(shared):
    client, service = shared
    parts = [{"type": "text", "text": "Who is"}, {"type": "text", "text": "there?"}]
    client.chat.completions.create(
        model="demo",
        messages=[{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}],
    )
    text = service.tokenizer.decode(asked(service).prompt_ids)
    assert text == "System: Be brief\nUser: Who is\nthere?\nAssistant:"


def test_every_setting_arrives(shared):
    client, service = shared
    client.chat.completions.create(
        model="demo", messages=MESSAGES, max_completion_tokens=7, temperature=0.3, top_p=0.8,
        presence_penalty=0.5, frequency_penalty=-0.5, seed=11, stop=["JULIET", "ROMEO"],
        logit_bias={"13": -100, "7": 2.5},
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True,
                    "stop_token_ids": [9]},
    )  # fmt: skip
    settings = asked(service).settings
    s = settings.sampling
    assert (settings.max_new_tokens, settings.stop, settings.stop_ids) == (
        7,
        ("JULIET", "ROMEO", "\nUser:"),  # where answers in the plain form are over
        (9,),
    )
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.3, 0.8, 40, 0.05)
    assert (s.presence_penalty, s.frequency_penalty, s.repeat_penalty) == (0.5, -0.5, 1.1)
    assert (s.seed, s.logit_bias, settings.ignore_eos) == (11, ((13, -100), (7, 2.5)), True)
    assert settings.logprobs is None


def test_a_silent_request_gets_the_defaults_of_the_model_then_of_the_api(shared):
    client, service = shared
    client.chat.completions.create(model="demo", messages=MESSAGES)
    first = asked(service).settings
    client.chat.completions.create(model="demo", messages=MESSAGES, seed=-1)
    assert (first.sampling.temperature, first.sampling.top_p) == (1.0, 1.0)
    assert first.max_new_tokens == CONTEXT
    assert first.sampling.seed != asked(service).settings.sampling.seed >= 0
    with face(defaults={"temperature": 0.6, "top_k": 20}) as (server, other):
        client_of(server).chat.completions.create(model="demo", messages=MESSAGES, top_p=0.5)
        s = asked(other).settings.sampling
    assert (s.temperature, s.top_k, s.top_p) == (0.6, 20, 0.5)


client_of = client


def test_n_texts_have_seeds_of_their_own(shared):
    client, service = shared
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [SAID] * 3
    seeds = [text.settings.sampling.seed for text in service.texts[-3:]]
    assert seeds == [5, 6, 7]
    one = len(asked(service).prompt_ids)
    assert answer.usage.prompt_tokens == one  # the prompt counts once
    assert answer.usage.completion_tokens % 3 == 0


def test_n_texts_in_one_stream(shared):
    client, _ = shared
    texts, ends = ["", ""], []
    for chunk in client.chat.completions.create(
        model="demo", messages=MESSAGES, n=2, stream=True, max_tokens=5
    ):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert texts[0] == texts[1] and SAID.startswith(texts[0]) and ends == ["length"] * 2


def test_logprobs_of_a_chat(shared):
    client, service = shared
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, top_logprobs=3, max_tokens=4
    )
    content = answer.choices[0].logprobs.content
    ids = service.tokenizer.encode(SAID, add_bos=False)[:4]
    assert [bytes(told.bytes) for told in content] == [
        service.tokenizer.token_bytes(i) for i in ids
    ]
    assert b"".join(bytes(told.bytes) for told in content).decode() == " It is the e"
    assert [told.logprob for told in content] == [-0.25] * 4
    assert [top.logprob for top in content[0].top_logprobs] == [-5.5, -6.5, -7.5]


def test_logprobs_of_a_streamed_chat(shared):
    client, _ = shared
    stream = client.chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, max_tokens=4, stream=True
    )
    told = [c.choices[0].logprobs.content for c in stream if c.choices[0].logprobs]
    assert [len(content) for content in told] == [1] * 4
    assert all(content[0].top_logprobs == [] for content in told)


def test_logprobs_of_a_completion(shared):
    client, _ = shared
    answer = client.completions.create(model="demo", prompt="ROMEO:", logprobs=2, max_tokens=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == [" It", " is", " the"] and logprobs.text_offset == [0, 3, 6]
    assert logprobs.token_logprobs == [-0.25] * 3
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 3


def test_a_completion(shared):
    client, service = shared
    answer = client.completions.create(model="demo", prompt="ROMEO:", stop=".")
    assert SAID.startswith(answer.choices[0].text) and answer.choices[0].text
    assert asked(service).settings.max_new_tokens == 16
    assert asked(service).settings.stop == (".",)
    assert asked(service).prompt_ids == service.tokenizer.encode("ROMEO:")
    text = ""
    for chunk in client.completions.create(model="demo", prompt="A", stream=True, max_tokens=99):
        text += chunk.choices[0].text
    assert text == SAID


def test_several_prompts_in_one_completion(shared):
    client, service = shared
    answer = client.completions.create(model="demo", prompt=["A", "B"], n=2, max_tokens=99)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    prompts = [text.prompt_ids for text in service.texts[-4:]]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    ids = [[5, 6], [7]]
    client.completions.create(model="demo", prompt=ids)
    assert [text.prompt_ids for text in service.texts[-2:]] == ids


def test_models(shared):
    client, _ = shared
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "tpimpi")
    assert client.models.retrieve("demo").model_extra["max_model_len"] == CONTEXT
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("meta/other")


def test_several_names():
    with face(names=("a/b", "c")) as (server, _):
        user = client_of(server)
        assert [model.id for model in user.models.list().data] == ["a/b", "c"]
        assert user.models.retrieve("a/b").id == "a/b"
        answer = user.chat.completions.create(model="c", messages=MESSAGES)
        assert answer.model == "c"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body, error, words",
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "there is no model 'gpt-4' here; there is demo"),
        ({"messages": [{"role": "user", "content": "a b " * 300}]}, openai.BadRequestError,
         f"tokens, and the context {CONTEXT}"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"logit_bias": {"4000": 1}}, openai.BadRequestError, "beyond the vocabulary"),
        ({"n": 100}, openai.BadRequestError, "64 may wait"),
        ({"audio": {"voice": "x"}}, openai.BadRequestError, "audio is not supported"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, openai.BadRequestError,
         "type 'image_url' is not supported"),
    ],
)  # fmt: skip
def test_refusals(shared, body, error, words, stream):
    user, service = shared
    before = len(service.texts)
    with pytest.raises(error, match=words):
        user.chat.completions.create(
            **{"model": "demo", "messages": MESSAGES, "stream": stream,
               "extra_body": body} | {k: v for k, v in body.items() if k in ("model", "messages")}
        )  # fmt: skip
    until(lambda: all(text.ended.is_set() for text in service.texts[before:]))


def test_an_error_of_the_engine_in_the_midst():
    with face(script(error=MachineError("rank 1 on old-laptop was killed"))) as (server, _):
        user = client_of(server)
        with pytest.raises(openai.InternalServerError, match="rank 1 on old-laptop") as caught:
            user.chat.completions.create(model="demo", messages=MESSAGES)
        assert caught.value.status_code == 503
        text = ""
        with pytest.raises(openai.APIError, match="rank 1 on old-laptop"):
            for chunk in user.chat.completions.create(model="demo", messages=MESSAGES, stream=True):
                text += chunk.choices[0].delta.content or ""
        assert text == "It is the"


def test_a_defect_is_told_without_what_was_said(capfd):
    secret = "the prompt of somebody"
    with face(script(error=RuntimeError(secret))) as (server, _):
        with pytest.raises(openai.InternalServerError) as caught:
            client_of(server).chat.completions.create(model="demo", messages=MESSAGES)
        assert caught.value.status_code == 500 and secret not in str(caught.value)
    assert secret not in capfd.readouterr().err
