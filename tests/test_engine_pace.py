"""A prompt beside texts that are being made takes as much of a pass as they can spare."""

from tpimpi.engine.pace import FIRST, LEAST, Pace


def learned(step, token, passes=20):
    pace = Pace()
    for _ in range(passes):
        pace.learn(3, 0, step)
        tokens = pace.prompt_tokens(True, 512)
        pace.learn(3, tokens, step + tokens * token)
    return pace


def test_alone_a_prompt_has_the_whole_pass():
    assert Pace().prompt_tokens(False, 512) == 512
    assert learned(0.06, 0.007).prompt_tokens(False, 512) == 512


def test_before_anything_is_known_it_is_careful():
    assert Pace().prompt_tokens(True, 512) == FIRST and Pace().prompt_tokens(True, 8) == 8


def test_others_go_on_at_half_their_pace():
    assert 45 <= learned(0.35, 0.007).prompt_tokens(True, 512) <= 55  # streamed: much rides along
    assert learned(0.06, 0.007).prompt_tokens(True, 512) == LEAST
    assert learned(0.06, 0.007).prompt_tokens(True, 8) == 8


def test_what_a_prompt_costs_is_learned_alone_too():
    pace = Pace()
    pace.learn(1, 0, 0.35)
    pace.learn(0, 512, 512 * 0.007)
    assert pace.prompt_tokens(True, 512) in (49, 50)  # as rounding has it
