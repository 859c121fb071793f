"""Clients of all kinds at once: each gets what it would get alone, and nothing is left of them."""

import os
import random
import threading
import time

import httpx2
import pytest

from test_commands_serve import serving

SECONDS = float(os.environ.get("TPIMPI_TEST_LOAD_SECONDS", "8"))
CLIENTS = 8


def requests(number):
    """Return different requests: (path, body)."""
    chance, found = random.Random(7), []
    for seed in range(number):
        text = " ".join(chance.choices(["my", "lord", "the", "night", "is", "long"], k=40))
        body = {"max_tokens": chance.randint(1, 40), "seed": seed}
        body |= {"temperature": chance.choice([0, 0.7, 1.2]), "top_k": chance.choice([0, 20])}
        body |= chance.choice([{}, {"stop": ["e the"]}, {"frequency_penalty": 0.5}, {"n": 2}])
        beginning = text[: chance.randint(1, len(text))]
        if chance.random() < 0.5:
            found.append(("/v1/completions", body | {"prompt": beginning}))
        else:
            content = {"role": "user", "content": beginning}
            body |= chance.choice([{}, {"logprobs": True}])
            found.append(("/v1/chat/completions", body | {"messages": [content]}))
    return found


def said(answer):
    """Return what of an answer must always be the same."""
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def load(client, wanted, alone, end, seed, failures, counts):
    """Ask for texts until a time has come; leave some of them half-way."""
    chance = random.Random(seed)
    try:
        while time.monotonic() < end:
            at = chance.randrange(len(wanted))
            path, body = wanted[at]
            if chance.random() < 0.2:
                with client.stream("POST", path, json=body | {"stream": True}) as answer:
                    for _ in zip(range(chance.randint(1, 9)), answer.iter_lines(), strict=False):
                        pass
                counts["left"] += 1
            else:
                assert said(client.post(path, json=body)) == alone[at]
                counts["whole"] += 1
    except BaseException as error:
        failures.append(error)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mixed_load(mpirun, tmp_path, ranks):
    wanted = requests(40)
    with (
        serving(mpirun, ranks, tmp_path, "--port", 0, "--max-batch", 4) as server,
        httpx2.Client(base_url=server.url, timeout=60) as client,
    ):
        alone = [said(client.post(path, json=body)) for path, body in wanted]
        failures, counts, end = [], {"whole": 0, "left": 0}, time.monotonic() + SECONDS
        threads = [
            threading.Thread(
                target=load, args=(client, wanted, alone, end, seed, failures, counts)
            )
            for seed in range(CLIENTS)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert counts["whole"] > 2 * CLIENTS and counts["left"] > CLIENTS
        while (figures := client.get("/v1/ranks").json())["running"]:
            assert time.monotonic() < end + 20
        assert figures["waiting"] == 0 and figures["pages_used"] == 0
        print(f"{ranks} ranks: {counts}, {figures['generated_tokens']} tokens in {SECONDS:g} s")
