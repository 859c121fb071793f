"""Whether fewer devices would be faster, as `tpimpi doctor` says it of what is told to it."""

import pytest

from devices import GB, device, lan, speed
from tpimpi.bench.findings import SLOW
from tpimpi.bench.number import of_number
from tpimpi.comm.links import Link
from tpimpi.model.shapes import shape_config

CONFIG = shape_config("tinyllama-1.1b")  # 2.07 GB in bf16: 207 ms on one device at 10 GB/s


def found(count, link, memory=8 * GB, config=CONFIG):
    links = [[None if i == j else link for j in range(count)] for i in range(count)]
    devices = [device(rank, memory_bytes=memory) for rank in range(count)]
    return of_number(config, lambda name: "bf16", devices, [speed(r) for r in range(count)], links)


def test_a_fast_network_is_worth_all_devices():
    assert found(4, Link(20e-6, 1e9)) == []
    assert found(1, Link(1, 1)) == []


@pytest.mark.parametrize(("count", "one_way", "best"), [(2, 5e-3, 1), (4, 6e-3, 1)])
def test_a_slow_network_is_worth_fewer(count, one_way, best):
    (one,) = found(count, Link(one_way, 36e6))
    assert one.level == SLOW and one.ranks == tuple(range(best, count))
    assert f"{count} devices are slower than the first {best} alone" in one.text
    assert "a token of tinyllama-1.1b would take 2" in one.text and "start 1, without" in one.text


def test_fewer_that_do_not_hold_the_model_are_no_better():
    devices = [device(rank, memory_bytes=GB) for rank in range(4)]
    slow_disks = [speed(rank, disk=5e7) for rank in range(4)]
    links = [[None if i == j else Link(5e-3, 36e6) for j in range(4)] for i in range(4)]
    assert of_number(CONFIG, lambda name: "bf16", devices, slow_disks, links) == []


def test_a_late_device_is_left_out():
    slow = Link(20e-3, 1.2e6)
    links = lan(4, **{f"r3to{r}": slow for r in range(3)}, **{f"r{r}to3": slow for r in range(3)})
    links = [[link and Link(link.latency / 50, link.rate * 5) for link in row] for row in links]
    devices, speeds = [device(rank) for rank in range(4)], [speed(rank) for rank in range(4)]
    (one,) = of_number(CONFIG, lambda name: "bf16", devices, speeds, links)
    assert one.ranks == (3,) and "the first 3 alone" in one.text
