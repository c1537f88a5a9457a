"""Who is silent, who is gone, who said goodbye."""

from __future__ import annotations

import socket
import time

import pytest

from kd_lightning.parallel.heartbeat import ALIVE, Heartbeat, watch


@pytest.fixture
def ends():
    """A pair of connections and what the heartbeat on the first one ends for."""
    mine, theirs = socket.socketpair()
    found: list[str] = []
    yield mine, theirs, found
    mine.close()
    theirs.close()


def beat(mine, found, limit=0.4):
    thread = Heartbeat(mine, "node 7", limit, found.append)
    thread.start()
    return thread


def test_silence_ends(ends):
    mine, _, found = ends
    start = time.monotonic()
    beat(mine, found).join(10)
    assert found == ["no sign of life from node 7 for 0 seconds"]
    assert time.monotonic() - start > 0.4


def test_a_closed_connection_ends(ends):
    mine, theirs, found = ends
    theirs.close()
    beat(mine, found).join(10)
    assert found == ["node 7 has gone without a word"]


def test_signs_of_life_keep_it_going_and_goodbye_stops_it(ends):
    mine, theirs, found = ends
    thread = beat(mine, found)
    for _ in range(12):  # three times the limit
        theirs.sendall(ALIVE)
        time.sleep(0.1)
    assert thread.is_alive() and not found
    other = Heartbeat(theirs, "node 0", 0.4, found.append)
    other.stop()
    thread.join(10)
    assert not thread.is_alive() and not found


def test_two_of_them_live_on_each_other(ends):
    mine, theirs, found = ends
    pair = [beat(mine, found), beat(theirs, found)]
    time.sleep(1.2)
    assert all(t.is_alive() for t in pair) and not found
    pair[0].stop()
    pair[1].join(10)
    assert not found


def test_one_node_is_not_watched():
    class OneNode:
        num_nodes = 1

    assert watch(OneNode()) == []
