"""The cache's room."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from crestline.models.kv_cache import CacheShape, KvCache


def test_room_that_is_outgrown_is_given_back_at_once() -> None:
    shape = CacheShape(num_heads=2, num_kv_heads=2, head_size=32, windows=(None, None))
    cache = KvCache(
        shape,
        rows=2,
        own_columns=500,
        prompts=0,
        prompt_columns=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.append([3], [1])
    cache.advance()
    query_BF = torch.ones(1, 64)
    for layer in range(2):
        cache.attend(layer, query_BF, query_BF, query_BF)
    first, width = StorageWeakRef(cache.own[0][0].untyped_storage()), cache.width
    assert not first.expired()
    cache.append([60], [1])
    assert cache.width > width and first.expired()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 16, 24, 32])
def test_a_row_does_not_see_how_much_room_there_is(size: int, dtype: torch.dtype) -> None:
    """Where sums over the columns are cut, what is left may be short."""
    torch.manual_seed(0)
    shape = CacheShape(num_heads=2, num_kv_heads=2, head_size=size, windows=(None,))
    steps = torch.randn(220, 3, 1, 2 * size)

    def last(others: int) -> list[torch.Tensor]:
        cache = KvCache(
            shape,
            rows=2,
            own_columns=900,
            prompts=0,
            prompt_columns=0,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        cache.append([0, 0], [1, 1])
        cache.lengths_B[1] = others  # as if it had been written for longer
        found = []
        for step in steps:
            cache.advance()
            given = step.expand(3, 2, 2 * size).contiguous()
            found.append(cache.attend(0, *given)[0])
        return found

    expected = last(0)
    for others in (150, 300, 500):
        assert all(map(torch.equal, last(others), expected)), others
