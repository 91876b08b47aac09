"""One cluster for the session, mended before each test, and a tree on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.faults.cluster import Cluster, start_cluster
from tests.faults.tree import Tree, start_tree

WORKERS = 2


@pytest.fixture(scope="session")
async def only_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with start_cluster(tmp_path_factory.mktemp("cluster"), WORKERS) as cluster:
        yield cluster


@pytest.fixture
async def cluster(only_cluster: Cluster) -> Cluster:
    await only_cluster.mend(WORKERS)
    return only_cluster


@pytest.fixture
async def tree(cluster: Cluster) -> AsyncIterator[Tree]:
    async with start_tree(cluster) as tree:
        yield tree
