"""The embedded engine: found, started, told apart from others, and gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from stateful_workflow.engine import find_temporal, start_engine
from stateful_workflow.errors import EngineError, EngineNotFound

ENDS_WITH_US = """
import asyncio, sys
from stateful_workflow.engine import start_engine

async def main():
    async with start_engine(ui=False) as engine:
        print(engine.address, flush=True)
        await asyncio.sleep(50)

asyncio.run(main())
"""


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def gone(port: int, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while listens(port):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_serves_and_is_gone_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    async with start_engine(namespace="acme") as engine:
        client = await Client.connect(engine.address, namespace=engine.namespace)
        assert [run async for run in client.list_workflows()] == []
        assert engine.ui_url is not None
        async with httpx.AsyncClient() as http:
            page = await http.get(engine.ui_url, follow_redirects=True)
        assert page.status_code == 200
        assert engine.db is None
    assert gone(port_of(engine.address))
    assert capfd.readouterr() == ("", "")


async def test_a_file_keeps_the_data(tmp_path: Path) -> None:
    db = tmp_path / "with a space" / "engine.db"
    db.parent.mkdir()
    async with start_engine(db, ui=False) as engine:
        client = await Client.connect(engine.address)
        await client.start_workflow("Tenant", id="tenant", task_queue="q")
        assert (engine.db, engine.ui_url) == (db, None)
    async with start_engine(str(db), ui=False) as engine:
        client = await Client.connect(engine.address)
        assert (await client.get_workflow_handle("tenant").describe()).workflow_type == "Tenant"


async def test_given_ports_are_used_and_a_taken_one_is_named() -> None:
    port, ui_port = free_port(), free_port()
    async with start_engine(port=port, ui_port=ui_port) as engine:
        assert engine.address == f"127.0.0.1:{port}"
        assert engine.ui_url == f"http://127.0.0.1:{ui_port}"
        with pytest.raises(EngineError, match=f"--port {port} .*in use"):
            await start_engine(port=port).__aenter__()
        with pytest.raises(EngineError, match=f"--ui-port {ui_port} .*in use"):
            await start_engine(ui_port=ui_port).__aenter__()


async def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="--port 70000 cannot be used: not a port number"):
        await start_engine(port=70_000).__aenter__()
    with pytest.raises(EngineError, match="its directory is missing"):
        await start_engine(tmp_path / "none" / "engine.db").__aenter__()


async def test_the_error_says_what_the_program_said() -> None:
    with pytest.raises(EngineError, match="unknown flag: --nonsense"):
        await start_engine(extra_args=["--nonsense"]).__aenter__()


async def test_cancelled_while_it_starts_it_leaves_nothing() -> None:
    port = free_port()
    starting = asyncio.ensure_future(start_engine(port=port, ui=False).__aenter__())
    await asyncio.sleep(0.02)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert gone(port)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_ends_with_a_process_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDS_WITH_US], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = port_of(process.stdout.readline())
            assert listens(port)
        finally:
            process.kill()
    assert gone(port)


def test_the_program_beside_the_interpreter_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, on_path = tmp_path / "beside", tmp_path / "on_path"
    for directory in (beside, on_path):
        directory.mkdir()
        (directory / "temporal").touch(0o755)

    def scripts(_: str) -> str:
        return str(beside)

    monkeypatch.setattr("sysconfig.get_path", scripts)
    monkeypatch.setattr("sys.executable", str(beside / "python"))
    monkeypatch.setenv("PATH", str(on_path))
    assert find_temporal() == beside / "temporal"
    (beside / "temporal").unlink()
    assert find_temporal() == on_path / "temporal"
    (on_path / "temporal").unlink()
    with pytest.raises(EngineNotFound, match=r'pip install "stateful-workflow\[engine\]"'):
        find_temporal()
