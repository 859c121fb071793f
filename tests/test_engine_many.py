"""Many texts at once: each is the one that it would be alone, whoever comes, goes or waits."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from program import DEMO
from support import open_session
from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.engine.engine import Engine
from tpimpi.engine.prompts import Prompts
from tpimpi.engine.service import Busy, Service
from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import MachineError, UserError

CONTEXT = 300


def texts(random, count, vocabulary, longest=40):
    """Return prompts, some of which begin alike, and how to go on from each."""
    begin = random.integers(3, vocabulary, 150).tolist()
    found = []
    for number in range(count):
        own = random.integers(3, vocabulary, int(random.integers(1, 60))).tolist()
        prompt = begin[: int(random.integers(0, 150))] + own
        choices = {
            "max_new_tokens": int(random.integers(1, longest)), "seed": number, "ignore_eos": True,
            "temperature": float(random.choice([0.0, 1.0])), "repeat_penalty": 1.1,
            "frequency_penalty": 0.5, "top_k": int(random.choice([0, 7])),
        }  # fmt: skip
        found.append((prompt, GenerationSettings.of(**choices)))
    return found


def alone(engine, prompts, asked):
    """Return the ids of each text, made by itself."""
    found = []
    for prompt, settings in asked:
        generation = prompts.generation(prompt, settings)
        engine.add(generation)
        while engine.busy:
            engine.step()
        found.append(generation.completion.ids)
    return found


def opened(comm, directory, folder, pool, slots=4, window=None):
    session, group, config = open_session(
        comm, directory, folder, window, chunk=64, slots=slots, context=CONTEXT, pool=pool
    )
    prompts = None
    if comm.rank == 0:
        prompts = Prompts(load_tokenizer(directory, config), config, session.plan.context)
    return session, group, config, prompts


@pytest.mark.parametrize(
    ("name", "pool"), [("demo", 4 * CONTEXT), ("demo", CONTEXT), ("qwen3_window", None),
                       ("mistral_window", CONTEXT), ("dynamic", CONTEXT)],
)  # fmt: skip
def test_a_text_is_the_same_in_company(comm, references, shared_tmp, name, pool):
    """Also where pages are so few that texts wait, and give their own back to older ones."""
    directory = DEMO if name == "demo" else references / name
    session, group, config, prompts = opened(comm, directory, shared_tmp, pool)
    with session, session.leading() as runner:
        if runner is not None:
            engine, pages = session.engine, runner.pages
            plain = Engine(runner, 4, 10**6, shares_pages=False)
            random = np.random.default_rng(5)
            few = name == "demo" and pool == CONTEXT
            asked = texts(random, 14, config.vocab_size, 150 if few else 40)
            expected = alone(plain, prompts, asked)
            assert pages.used == pages.cached == 0
            jobs = []
            while len(jobs) < len(asked) or engine.busy:
                if len(jobs) < len(asked) and random.random() < 0.4:
                    jobs.append(engine.add(prompts.generation(*asked[len(jobs)])))
                for _, event in engine.step():
                    assert not isinstance(event, Exception)
            assert [job.generation.completion.ids for job in jobs] == expected
            assert pages.used == 0
            assert engine.scheduler.preempted or not few
            cached = sum(job.generation.cached_tokens for job in jobs)
            assert (cached > 0) == (name != "dynamic")
            assert engine.cached_tokens == cached
    group.close()


def test_a_second_turn_begins_where_the_first_ended(comm, shared_tmp):
    session, group, _, prompts = opened(comm, DEMO, shared_tmp, 2 * CONTEXT)
    with session, session.leading() as runner:
        if runner is not None:
            settings = GenerationSettings.of(max_new_tokens=20, temperature=0, ignore_eos=True)
            first = prompts.generation([*range(100, 200)], settings)
            session.engine.add(first)
            while session.engine.busy:
                session.engine.step()
            turn = [*first.ids, 5, 6, 7]
            second = prompts.generation(turn, settings)
            session.engine.add(second)
            while session.engine.busy:
                session.engine.step()
            assert second.completion.cached_tokens == 119  # but for the last, never computed
            plain = Engine(runner, 1, 10**6, shares_pages=False)
            assert alone(plain, prompts, [(turn, settings)]) == [second.completion.ids]
    group.close()


def test_a_cancelled_text_leaves_the_others_as_they_are(comm, shared_tmp):
    session, group, config, prompts = opened(comm, DEMO, shared_tmp, 4 * CONTEXT)
    with session, session.leading() as runner:
        if runner is not None:
            engine = session.engine
            asked = texts(np.random.default_rng(6), 6, config.vocab_size)
            asked = [(p, replace(s, max_new_tokens=30)) for p, s in asked]
            expected = alone(Engine(runner, 1, 10**6, shares_pages=False), prompts, asked)
            jobs = [engine.add(prompts.generation(*one)) for one in asked]
            for count in range(200):
                if count in (2, 9):
                    engine.cancel(jobs[count // 3])
                engine.step()
            assert not engine.busy and runner.pages.used == 0
            for number, job in enumerate(jobs):
                done = job.generation.completion
                if number in (0, 3):
                    assert done.finish_reason == "cancelled"
                    assert done.ids == expected[number][: len(done.ids)]
                else:
                    assert done.ids == expected[number] and done.finish_reason == "length"
    group.close()


class _Wrong:
    """A constraint that fails after some tokens."""

    complete = False

    def __init__(self, tokens):
        self.left = tokens

    def allowed(self):
        return None

    def accept(self, token):
        self.left -= 1
        if not self.left:
            raise ValueError("the structure is broken")


def test_an_error_of_one_request_ends_that_one(comm, shared_tmp):
    session, group, _, prompts = opened(comm, DEMO, shared_tmp, 4 * CONTEXT)
    with session:
        service = Service(session, prompts, 8)
        if comm.rank == 0:
            settings = GenerationSettings.of(max_new_tokens=12, temperature=0, ignore_eos=True)
            events = {0: [], 1: [], 2: []}
            for number, constraint in enumerate((None, _Wrong(3), None)):
                service.submit("ROMEO:", settings, events[number].append, constraint)
            ticket = service.submit("ROMEO:", settings, lambda event: 1 / 0)
            service.stop(60)
        service.run()
        if comm.rank == 0:
            assert isinstance(events[1][-1], ValueError) and len(events[1]) == 3
            whole = [events[number][-1] for number in (0, 2)]
            assert [len(done.ids) for done in whole] == [12, 12] and whole[0].ids == whole[1].ids
            assert ticket.cancelled and ticket.generation.reason == "cancelled"
            with pytest.raises(MachineError, match="stopped"):
                service.submit("ROMEO:", settings, print)
        service.run()  # nothing waits
    group.close()


def test_a_service_for_threads(comm, shared_tmp):
    """Requests of several threads at random times; refused ones; an idle rank takes no core."""
    session, group, config, prompts = opened(comm, DEMO, shared_tmp, 2 * CONTEXT)
    with session:
        service, found, spent = Service(session, prompts, 2), {}, []
        asked = texts(np.random.default_rng(7), 8, config.vocab_size)

        def client(number):
            done = threading.Event()

            def listen(event):
                if not hasattr(event, "tokens") or hasattr(event, "finish_reason"):
                    found[number] = event
                    done.set()

            while True:
                try:
                    service.submit(*asked[number], listen)
                    break
                except Busy as busy:
                    assert "waiting already" in str(busy)
                    time.sleep(0.01)
            assert done.wait(120)

        def clients():
            threads = [threading.Thread(target=client, args=(n,)) for n in range(len(asked))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with pytest.raises(UserError, match="beyond the vocabulary"):
                service.submit([10**6], asked[0][1], print)
            time.sleep(1.2)
            spent.append(time.process_time())
            time.sleep(1.5)
            spent.append(time.process_time())
            assert service.snapshot().pages_used == 0
            service.stop(9)

        thread = threading.Thread(target=clients)
        if comm.rank == 0:
            thread.start()
        service.run()
        if comm.rank == 0:
            thread.join()
            assert spent[1] - spent[0] < 0.5  # of 1.5 seconds
            assert service.snapshot().generated_tokens == sum(len(e.ids) for e in found.values())
        with session.leading() as runner:
            if runner is not None:
                expected = alone(Engine(runner, 1, 10**6, shares_pages=False), prompts, asked)
                assert [found[n].ids for n in range(len(asked))] == expected
    group.close()


def test_ranks_that_wait_for_work_take_no_core(comm, shared_tmp):
    session, group, _, _ = opened(comm, DEMO, shared_tmp, CONTEXT)
    with session:
        comm.Barrier()
        before = time.process_time()
        with session.leading() as runner:
            if runner is not None:
                time.sleep(2)
        spent = time.process_time() - before
    assert spent < 1
    group.close()
