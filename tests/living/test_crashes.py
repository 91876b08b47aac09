"""A worker that mints is killed at every step, and the grant survives where it can.

`STATEFUL_KILLS` says how often; seven times, once at each step, where nothing is said.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stateful_workflow.engine import EmbeddedEngine
from tests.living.crashes import crash
from tests.living.process import LOSES_THE_ANSWER, STEPS
from tests.support.authorization_servers import start_oauth_toolkit, start_oidc_provider

KILLS = int(os.environ.get("STATEFUL_KILLS", len(STEPS)))
CELLS = 2 if len(STEPS) == KILLS else 5

pytestmark = pytest.mark.timeout(300 + 20 * KILLS)


async def test_where_the_provider_has_a_grace_no_kill_loses_a_grant(
    engine: EmbeddedEngine, tmp_path: Path, queue: str
) -> None:
    with start_oauth_toolkit(tmp_path / "server", grace=60) as server:
        figures = await crash(engine.address, tmp_path, queue, server, KILLS, CELLS)
    print(figures)
    assert (figures.killed.total(), figures.died.total()) == (KILLS, 0)


@pytest.mark.parametrize("start", [start_oauth_toolkit, start_oidc_provider])
async def test_where_it_has_none_lost_answers_need_authorization_and_nothing_else_does(
    start: Any, engine: EmbeddedEngine, tmp_path: Path, queue: str
) -> None:
    options = {"grace": 0} if start is start_oauth_toolkit else {}
    with start(tmp_path / "server", **options) as server:
        figures = await crash(engine.address, tmp_path, queue, server, KILLS, CELLS)
    print(figures)
    lost = {step: figures.killed[step] for step in LOSES_THE_ANSWER}
    assert {step: n for step, n in figures.died.items() if n} == {
        k: n for k, n in lost.items() if n
    }
