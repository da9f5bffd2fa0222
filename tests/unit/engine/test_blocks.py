import pytest

from datong.engine.blocks import ROOT, BlockPool
from datong.errors import OutOfBlocks


def publish(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Take, fill and publish the blocks of `tokens`."""
    size, parent, blocks = pool.block_size, ROOT, []
    for start in range(0, len(tokens), size):
        blocks.append(pool.take())
        if start + size <= len(tokens):
            parent = pool.publish(parent, tokens[start : start + size], blocks[-1])
    return blocks


def test_low_blocks_come_first_so_that_unused_memory_stays_untouched():
    pool = BlockPool(100, 4)
    assert [pool.take() for _ in range(3)] == [0, 1, 2]
    pool.release([0, 1, 2])
    assert pool.take() == 0


def test_a_full_pool_says_so():
    pool = BlockPool(2, 16)
    pool.take(), pool.take()
    with pytest.raises(OutOfBlocks, match=r"\[cache\] one more block was wanted, all 2 of 16 tokens are held\nhint: "):
        pool.take()


def test_a_prompt_with_the_same_beginning_finds_the_blocks():
    pool = BlockPool(8, 2)
    blocks = publish(pool, [1, 2, 3, 4, 5])
    pool.release(blocks)
    assert pool.held == 0
    found, chain = pool.match([1, 2, 3, 4, 9, 9], 6)
    assert found == blocks[:2] and len(chain) == 2
    assert pool.held == 2


def test_running_sequences_share_full_blocks():
    pool = BlockPool(8, 2)
    blocks = publish(pool, [1, 2, 3, 4])
    found, _ = pool.match([1, 2, 3, 4, 5], 4)
    assert found == blocks and pool.held == 2
    pool.release(blocks)
    assert pool.held == 2
    pool.release(found)
    assert pool.held == 0


def test_same_tokens_after_another_beginning_do_not_match():
    pool = BlockPool(8, 2)
    pool.release(publish(pool, [1, 2, 3, 4]))
    assert pool.match([9, 9, 3, 4], 4) == ([], [])
    assert pool.match([3, 4], 2) == ([], [])


def test_limit_keeps_the_last_token_out():
    pool = BlockPool(8, 2)
    pool.release(publish(pool, [1, 2, 3, 4]))
    assert len(pool.match([1, 2, 3, 4], 3)[0]) == 1


def test_idle_blocks_are_taken_oldest_and_last_first_and_forgotten():
    pool = BlockPool(4, 2)
    old, new = publish(pool, [1, 2, 3, 4]), publish(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    assert pool.take() == old[1]  # the end of the oldest prompt goes first
    assert pool.match([1, 2, 3, 4], 4)[0] == old[:1]
    assert pool.match([5, 6, 7, 8], 4)[0] == new


def test_equal_blocks_of_two_sequences_are_published_once():
    pool = BlockPool(4, 2)
    first, second = publish(pool, [1, 2]), publish(pool, [1, 2])
    pool.release(first)
    pool.release(second)
    assert pool.available == 4
    assert pool.match([1, 2], 2)[0] == first


def test_without_reuse_nothing_matches():
    pool = BlockPool(4, 2, reuse=False)
    pool.release(publish(pool, [1, 2]))
    assert pool.match([1, 2], 2) == ([], [])


def test_forget_drops_content_not_blocks():
    pool = BlockPool(4, 2)
    pool.release(publish(pool, [1, 2]))
    pool.forget()
    assert pool.available == 4 and pool.match([1, 2], 2) == ([], [])
