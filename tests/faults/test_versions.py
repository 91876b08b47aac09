"""Two versions of the library side by side, as during a rolling deploy."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cluster import start_cluster
from .invariants import check
from .older import older_library
from .tree import start_tree


@pytest.mark.timeout(150)
async def test_workers_of_an_older_version_are_replaced_while_tokens_rotate(tmp_path: Path) -> None:
    older = older_library(tmp_path)
    (tmp_path / "cluster").mkdir()
    async with start_cluster(tmp_path / "cluster", workers=1) as cluster:
        (newest,) = cluster.workers
        (old,) = await cluster.start_workers(library=older)
        async with start_tree(cluster) as tree:  # nodes of both, each kept by its worker
            await tree.rotate()
            await tree.rotate()

            # The older one replays what the newest began, and the newest what both have written.
            cluster.kill_worker(newest)
            await tree.rotate()
            await cluster.start_workers()
            await tree.rotate()
            cluster.kill_worker(old)
            await tree.rotate()

            await check(tree)
