"""The address that a node is reached at."""

from __future__ import annotations

import pytest

from llm_bridge.remote.node.ray import network


def test_an_interface_pattern_means_what_it_means_to_nccl() -> None:
    have = ["lo", "eth0", "ib0", "ib1"]
    assert network.matching("eth0", have) == ["eth0"]
    assert network.matching("ib", have) == ["ib0", "ib1"]
    assert network.matching("=ib", have) == []
    assert network.matching("enp25s0np0,ib1", have) == ["ib1"]


def test_an_interface_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(RuntimeError, match=r"network_interface 'enp25s0np0' .* is not on n7; it has lo"):
        network.node_address("n7", "enp25s0np0")


def test_the_interfaces_address_is_used() -> None:
    assert network.node_address("n7", "lo") == "127.0.0.1"
