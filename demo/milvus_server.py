"""A real Milvus server on this computer, reachable from this computer alone.

    pip install milvus==2.3.5
    python demo/milvus_server.py --port 19530 --data DIR

The wheel `milvus` has the server in it, but that one listens to every network there is.
So it runs in a network namespace of its own, where there is none, and its port is carried
out through a UNIX socket to 127.0.0.1:PORT. Needs Linux, and `unshare` to be allowed. It
runs until Ctrl-C or SIGTERM; killed in any way, it leaves no process behind, and may be
started again with the same DIR.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

NOT_HERE = 3  # the exit status where such a server cannot be run
INSIDE = 19530  # its port in the namespace
HEALTH = 9091
READY = b"ready\n"
STOPPING = 20  # seconds it may take to stop

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A real Milvus server at 127.0.0.1, until Ctrl-C."
    )
    parser.add_argument("--port", type=int, default=19530, help="default: 19530")
    parser.add_argument("--data", type=Path, required=True, help="folder for its data")
    parser.add_argument("--inside", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        sys.exit(asyncio.run(run_inside(options.inside, options.data)))
    problem = what_is_missing()
    if problem:
        print(problem, file=sys.stderr)
        sys.exit(NOT_HERE)
    options.data.mkdir(parents=True, exist_ok=True)
    sys.exit(asyncio.run(run_outside(options.port, options.data.resolve())))


# Outside: 127.0.0.1:PORT


def unshare() -> list[str]:
    """The command before a command that gives it a network namespace of its own."""
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-r", "-n"]


def what_is_missing() -> str | None:
    """Why there can be no server here; None where there can."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return "This needs Linux, and the command unshare (util-linux)"
    if importlib.util.find_spec("milvus") is None:
        return "This needs the server: pip install milvus==2.3.5"
    tried = subprocess.run([*unshare(), "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"A network namespace is not allowed here: {tried.stderr.strip()}"
    return None


async def run_outside(port: int, data: Path) -> int:
    """Start the server and carry connections to it. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="milvus-") as folder:
        path = f"{folder}/socket"
        try:
            server = await asyncio.start_server(
                lambda *caller: forward(caller, lambda: asyncio.open_unix_connection(path)),
                "127.0.0.1",
                port,
            )
        except OSError as error:
            print(f"127.0.0.1:{port} cannot be had: {error.strerror}", file=sys.stderr)
            return 1
        async with server:
            return await carry(path, port, data)


async def carry(path: str, port: int, data: Path) -> int:
    command = [*unshare(), sys.executable, __file__]
    inside = await asyncio.create_subprocess_exec(
        *command,
        f"--inside={path}",
        f"--data={data}",
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for us alone; what is inside is then told to stop.
        start_new_session=True,
    )
    stopped = stop_signals()
    ended = asyncio.ensure_future(inside.wait())
    line = asyncio.ensure_future(inside.stdout.readline())
    await asyncio.wait({stopped, line}, return_when=asyncio.FIRST_COMPLETED)
    if line.done() and line.result() == READY:
        print(f"Milvus is ready at 127.0.0.1:{port}, data in {data}", flush=True)
    await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
    line.cancel()
    if stopped.done():
        print("Milvus is stopping", flush=True)
        with contextlib.suppress(ProcessLookupError):
            inside.terminate()
        await ended
        return 0
    print(f"Milvus has ended: see {data}/logs", file=sys.stderr)
    return 1


def stop_signals() -> asyncio.Future[None]:
    """What is done when somebody wants us to stop."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: stopped.done() or stopped.set_result(None))
    return stopped


# Inside: a namespace that has only what we bring up


async def run_inside(path: str, data: Path) -> int:
    """Run the server, and a UNIX socket that leads to it. Returns the exit status."""
    die_with_parent()
    bring_loopback_up()
    stopped = stop_signals()
    listening = await asyncio.start_unix_server(
        lambda *caller: forward(
            caller, lambda: asyncio.open_connection("127.0.0.1", INSIDE)
        ),
        path,
    )
    # In this thread: the kernel would end Milvus along with any other one.
    milvus = start_milvus(data)
    async with listening:
        ended = asyncio.ensure_future(asyncio.to_thread(milvus.wait))
        ready = asyncio.ensure_future(say_when_ready())
        await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        milvus.terminate()
        await asyncio.wait({ended}, timeout=STOPPING)
        milvus.kill()
        await ended
    return 0 if stopped.done() else 1


def start_milvus(data: Path) -> subprocess.Popen[bytes]:
    """The server's process. Its configuration is the wheel's own."""
    from milvus import MilvusServer, _initialize_data_files

    server = MilvusServer()
    server.set_base_dir(str(data))
    server.listen_port = INSIDE
    # Not the full path: what reads vectors from under a compressed index (IVF_SQ8, IVF_PQ)
    # would take the files it reads for copies of its own, and delete them.
    server.config.set("localStorage.path", "data")
    server.config.resolve()
    _initialize_data_files(str(data))
    environment = os.environ | {
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(HEALTH),
        "MILVUS_RUN_DIR": str(data / "run"),
        "LD_LIBRARY_PATH": str(data / "bin"),
    }
    with (data / "logs" / "milvus.log").open("wb") as log:
        return subprocess.Popen(
            [server.get_milvus_executable_path(), "run", "standalone"],
            cwd=data,
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )


async def say_when_ready() -> None:
    while not await asyncio.to_thread(healthy):
        await asyncio.sleep(0.1)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()


def healthy() -> bool:
    """Whether all parts of the server answer."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{HEALTH}/healthz", timeout=5
        ) as told:
            return told.read().strip() == b"OK"
    except OSError:
        return False


def die_with_parent() -> None:
    """Have the kernel kill us when who started us is gone, in whatever way."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def bring_loopback_up() -> None:
    """`ip link set lo up`, where there is no `ip`."""
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    with socket.socket() as control:
        told = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", told)[1] | IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


# Both


async def forward(caller: Streams, connect: Callable[[], Awaitable[Streams]]) -> None:
    """Carry bytes between a caller and what `connect` connects to, both ways."""
    reader, writer = caller
    try:
        far_reader, far_writer = await connect()
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    main()
