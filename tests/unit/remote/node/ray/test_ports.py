"""The block of ports of a Ray cluster."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from llm_bridge.remote.node.ray import ports


def free_blocks() -> Iterator[int]:
    return (block for block in ports.blocks(32768) if not ports.ports_in_use(block))


def test_blocks_lie_below_the_ephemeral_range() -> None:
    assert ports.blocks(32768) == list(range(12_000, 31_001, 1000))
    assert ports.blocks(49152)[-1] == 31_000, "never higher: other systems' ranges begin at 32768"
    assert ports.blocks(15_500) == [12_000, 13_000, 14_000]
    assert ports.blocks(1024) == ports.blocks(32768), "no room under it: better some block than none"


def test_every_port_of_a_block_is_its_own() -> None:
    block = ports.ports(12_000)
    assert len(set(block.values())) == len(block)
    assert all(12_000 <= port < 13_000 for port in block.values())


def test_consecutive_jobs_try_different_blocks_first() -> None:
    blocks = ports.blocks(32768)
    assert ports.choose(100, blocks, lambda _: []) != ports.choose(101, blocks, lambda _: [])


def test_a_block_with_a_port_in_use_is_skipped() -> None:
    blocks = [10_000, 11_000, 12_000]
    busy = {11_000: [11_001], 12_000: [12_500]}
    assert ports.choose(1, blocks, lambda block: busy.get(block, [])) == 10_000


def test_no_free_block_is_an_error_that_lists_ports_in_use() -> None:
    with pytest.raises(RuntimeError, match=r"none of 2 blocks .* in use: 10007, 11007"):
        ports.choose(0, [10_000, 11_000], lambda block: [block + 7])


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_listening_program_is_detected_on_any_address(address: str) -> None:
    block = next(free_blocks())
    with socket.socket() as server:
        server.bind((address, block + 3))
        server.listen()
        assert ports.ports_in_use(block) == [block + 3]
    assert ports.ports_in_use(block) == []


def test_a_block_is_reserved_from_the_moment_it_is_chosen() -> None:
    """A cluster binds the ports themselves some 10 s later."""
    blocks = list(itertools.islice(free_blocks(), 2))
    first, reservation = ports.take(0, blocks)
    second, other = ports.take(0, blocks)
    assert [first, second] == blocks
    with pytest.raises(RuntimeError, match=f"none of 2 blocks .* in use: {first + ports.LOCK_OFFSET}"):
        ports.take(0, blocks)
    reservation.close()
    again, last = ports.take(1, blocks)
    assert again == first
    for each in (other, last):
        each.close()


def test_the_reservation_is_no_port_of_ray_and_keeps_none_of_them_in_use() -> None:
    block = next(free_blocks())
    taken, reservation = ports.take(0, [block])
    with reservation:
        assert reservation.getsockname()[1] not in ports.ports(taken).values()
        assert ports.ports_in_use(taken) == []


def test_a_block_with_a_port_in_use_stays_unreserved() -> None:
    block = next(free_blocks())
    with socket.create_server(("127.0.0.1", block + 3)), pytest.raises(RuntimeError):
        ports.take(0, [block])
    ports.take(0, [block])[1].close()
