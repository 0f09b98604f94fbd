"""The cache's room."""

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
