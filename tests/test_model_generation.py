"""How a model wants its tokens chosen, where nobody says otherwise."""

import json

import pytest

from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import UserError
from tpimpi.model.generation import sampling_defaults


def defaults(folder, **values):
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps(values))
    return sampling_defaults(folder)


def test_its_names_are_ours(tmp_path):
    found = defaults(
        tmp_path, temperature=0.6, top_p=0.95, top_k=20, min_p=None, repetition_penalty=1.05,
        do_sample=True, eos_token_id=[2, 3],
    )  # fmt: skip
    assert found == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repeat_penalty": 1.05}
    settings = GenerationSettings.of(found, top_k=0, seed=3)
    assert settings.sampling.top_k == 0 and settings.sampling.temperature == 0.6
    assert settings.sampling.seed == 3 and settings.max_new_tokens == 20


def test_without_sampling_the_likeliest_is_taken(tmp_path):
    assert defaults(tmp_path, do_sample=False, temperature=0.7)["temperature"] == 0
    assert defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").unlink()
    assert sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": "hot"}, "temperature = 'hot', which must be a number, 0 or more"),
        ({"temperature": -1}, "0 or more"),
        ({"temperature": True}, "must be a number"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_k": 2.5}, "integer"),
        ({"repetition_penalty": 0}, "0.001 or more"),
        ({"do_sample": "yes"}, "do_sample"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, values, words):
    with pytest.raises(UserError, match=words) as error:
        defaults(tmp_path, **values)
    assert "generation_config.json" in str(error.value)
