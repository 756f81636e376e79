"""Signs of life: which rank is gone, what it said, who tells, and that a hang does not last."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from saeworks.training import ranks as ranks_module
from saeworks.training.ranks import RankLost, Ranks
from saeworks.training.watch import INTERRUPTED, Lost, Watch


@pytest.fixture
def watches():
    """Three ranks with signs in one store."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    made = [Watch(store, rank, 3) for rank in range(3)]
    yield made
    for watch in made:
        watch._ended.set()


def silenced(watch):
    """What a kill does: no more signs, and no word."""
    watch._ended.set()
    watch._thread.join()


def test_nobody_is_lost_while_all_give_signs(watches):
    assert all(watch.lost() is None for watch in watches)


def test_a_rank_that_falls_silent_is_found_by_the_others_and_one_of_them_tells(watches):
    silenced(watches[1])
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(Watch.lost, (watches[0], watches[2])))
    assert found == [Lost(1, 3), Lost(1, 3)]
    assert "Rank 1 of 3 is gone" in found[0].sentence()
    assert "--resume" in found[0].sentence()
    assert sorted([watches[2].speaks(), watches[0].speaks()]) == [False, True]


def test_a_last_sign_that_nobody_had_read_is_not_a_sign_of_life(watches):
    silenced(watches[1])
    watches[0]._store.set("beat/1", "1000")
    assert watches[0].lost() == Lost(1, 3)


def test_a_rank_that_ends_with_an_error_passes_its_sentence_on(watches):
    watches[2].leave("The disk is full.")
    assert watches[0].lost() == Lost(2, 3, "The disk is full.")
    assert watches[0].lost().sentence() == "Rank 2 of 3 stopped: The disk is full."


def test_survivors_that_leave_first_are_not_taken_for_the_lost_one(watches):
    silenced(watches[0])
    watches[1].leave("")
    assert watches[2].lost() == Lost(0, 3)


def test_ranks_that_were_interrupted_are_not_lost(watches):
    watches[0].leave(INTERRUPTED)
    watches[1].leave(INTERRUPTED)
    assert watches[2].lost() is None


def test_a_failed_operation_becomes_the_sentence_about_the_lost_rank(watches, monkeypatch):
    def broken(*_arguments, **_options):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ranks_module.dist, "all_reduce", broken)
    watches[1].leave("It is too hot.")
    with pytest.raises(RankLost, match="Rank 1 of 3 stopped: It is too hot"):
        Ranks(0, 3, watches[0]).barrier()


HANGS = """
import time
import torch.distributed as dist
from saeworks.training.watch import Watch
store = dist.HashStore()
Watch(store, 0, 2, hung=1.0)
time.sleep(60)
"""


def test_a_rank_that_hangs_ends_those_that_wait_for_it():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Rank 1 of 2 is gone" in done.stderr
    assert len(done.stderr.splitlines()) == 1
