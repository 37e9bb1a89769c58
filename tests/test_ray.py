"""Embedding on a Ray cluster: what comes out is what one process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from core import command, contents, counts, embed, failures, sql, value

from datasette_image_similarity.collection import EncoderOptions
from datasette_image_similarity.errors import EncoderError, EngineError
from datasette_image_similarity.ray_engine import Layout, Node, RayEngine, layout

HOST = "127.0.0.1"
PATIENCE = 180  # seconds, for what takes a few on an idle machine
PACKAGE = Path(__file__).parents[1]

# An encoder that waits until it is told to go on: from the second call in each process,
# or for what is mainly red.
GATED = """
import os, time
from pathlib import Path
import numpy as np

class Gated:
    name, dimensions, fingerprint, size = "gated 1", 3, "gated 1", 16
    calls = 0

    def encode(self, batch):
        self.calls += 1
        gate, colours = Path(os.environ["GATE"]), batch.mean((1, 2), dtype=np.float32)
        if "GATE_RED" in os.environ:
            waits = colours.mean(0).argmax() == 0
        else:
            waits = self.calls > 1
        if waits:
            (gate / f"waiting-{os.getpid()}").touch()
        while waits and not (gate / "open").exists():
            time.sleep(0.02)
        return 1 + colours
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the encoder "gated", for this process and those it starts."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "gated.py").write_text(GATED)
    about = folder / "gated-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gated\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[datasette_image_similarity.encoders]\ngated = gated:Gated\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATE", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(PACKAGE)]))
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def closed_gate(gate: Path) -> Path:
    for mark in [gate / "open", *gate.glob("waiting-*")]:
        mark.unlink(missing_ok=True)
    return gate


@pytest.fixture(scope="module")
def cluster(gate: Path) -> Iterator[Any]:
    """Two nodes of a core each, on this machine."""
    pytest.importorskip("ray.data", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        import ray
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        # As the environment variable, which is read before anybody asks for Ray.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "node_ip_address": HOST}
        made = Cluster(
            initialize_head=True, head_node_args={**node, "include_dashboard": False}
        )
        made.add_node(**node)
        made.wait_for_nodes(PATIENCE)
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def engine(cluster: Any) -> Iterator[RayEngine]:
    with RayEngine(cluster.address) as made:
        yield made


@pytest.fixture
def one_actor(cluster: Any) -> Iterator[RayEngine]:
    """For what does not take two of them, which take as long again to start."""
    with RayEngine(cluster.address, actors=1) as made:
        yield made


@pytest.fixture
def album(photos: Path) -> Path:
    """26 pictures: one is none, one is the copy of another."""
    (photos / "green" / "bad.png").write_bytes(b"no picture")
    copy = (photos / "blue" / "blue-3.png").read_bytes()
    (photos / "red" / "zz.png").write_bytes(copy)
    return photos


def table(path: Path, photos: Path) -> Path:
    """Files and BLOBs of the pictures in rows with odd keys."""
    sql(path, "create table works (name text primary key, file text, scan blob)")
    for file in sorted(photos.rglob("*.png")):
        inside = str(file.relative_to(photos))
        row = (f"{file.stem} ☃", inside, file.read_bytes())
        sql(path, "insert into works values (?, ?, ?)", row)
    sql(path, "insert into works values ('none', 'missing.png', null)")
    return path


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"not within {PATIENCE} seconds: {what}"
        time.sleep(0.1)


# The same as one process


def test_a_folder(tmp_path: Path, album: Path, engine: RayEngine) -> None:
    alone, many = tmp_path / "alone.db", tmp_path / "many.db"
    said = []
    one = embed(alone, album, label_from_folder=True)
    two = embed(
        many,
        album,
        label_from_folder=True,
        engine=engine,
        batch_size=4,
        progress=lambda now: said.append((now.encoder, now.done)),
    )
    assert contents(many) == contents(alone)
    assert counts(two) == counts(one) == (24, 1, 0, 1, 0)
    assert said[0] == ("hog, by Ray: 2 actors of 1 CPU each on 2 nodes", 0)
    assert said[-1][1] == 26

    (album / "red" / "red-1.png").rename(album / "moved.png")
    (album / "new.png").write_bytes(picture("blue", 99))
    os.utime(album / "red" / "red-2.png", ns=(1, 1))
    one, two = embed(alone, album), embed(many, album, engine=engine)
    assert contents(many) == contents(alone)
    assert counts(two) == counts(one) == (1, 1, 24, 1, 0)


@pytest.mark.parametrize("column", ["path_column", "blob_column"])
def test_a_column(
    column: str,
    tmp_path: Path,
    album: Path,
    engine: RayEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Paths in two windows, each of which has actors of its own."""
    source = {"blob_column": "scan"}
    if column == "path_column":
        source = {"path_column": "file", "root": album}
        monkeypatch.setattr("datasette_image_similarity.ray_engine.WINDOW_JOBS", 14)
    alone, many = (table(tmp_path / f"{n}.db", album) for n in ("alone", "many"))
    one = embed(alone, table="works", **source)
    two = embed(many, table="works", engine=engine, batch_size=4, **source)
    assert contents(many, "works") == contents(alone, "works")
    assert counts(two) == counts(one) == (24, 1, 0, 2, 0)


def test_fewer_dimensions(tmp_path: Path, album: Path, one_actor: RayEngine) -> None:
    """The projection is learned from the first pictures, on both sides from all."""
    alone, many = tmp_path / "alone.db", tmp_path / "many.db"
    fewer = EncoderOptions("hog", dims=8)
    embed(alone, album, encoder=fewer)
    embed(many, album, encoder=fewer, engine=one_actor)
    assert contents(many) == contents(alone)
    (album / "new.png").write_bytes(picture("blue", 99))
    embed(alone, album)
    embed(many, album, engine=one_actor)
    assert contents(many) == contents(alone)


# What goes wrong on the way


def test_stopped_and_gone_on_with(
    tmp_path: Path, album: Path, one_actor: RayEngine
) -> None:
    alone, many = tmp_path / "alone.db", tmp_path / "many.db"
    done: list[int] = []
    options = {"engine": one_actor, "batch_size": 4}
    stopped = embed(
        many,
        album,
        progress=lambda now: done.append(now.done),
        stop=lambda: done[-1:] == [8],
        **options,
    )
    assert stopped.stopped
    assert value(many, "select count(*) from images") == 8
    second = embed(many, album, **options)
    assert second.unchanged == 8
    embed(alone, album)
    assert contents(many) == contents(alone)


def test_a_file_that_the_other_machine_lacks(
    tmp_path: Path, album: Path, one_actor: RayEngine
) -> None:
    def lose(now: Any) -> None:
        (album / "red" / "red-5.png").unlink(missing_ok=True)

    path = tmp_path / "many.db"
    summary = embed(path, album, engine=one_actor, progress=lose)
    assert counts(summary) == (23, 1, 0, 2, 0)
    reason = dict(row[1:] for row in failures(path))["red/red-5.png"]
    assert reason.startswith("not on the machine that was to read it (")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
def test_a_killed_run_is_gone_on_with(
    tmp_path: Path, album: Path, closed_gate: Path
) -> None:
    """A Ray of its own ends with the process that started it."""
    pytest.importorskip("ray.data", reason="Ray is not installed")
    path, mark = tmp_path / "killed.db", uuid.uuid4().hex
    words = [sys.executable, "-m", "datasette", "image-similarity", "embed"]
    words += [path, album, "--model", "gated", "--batch-size", "2", "--engine", "ray"]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "MARK": mark}
    # An actor has two blocks at a time, and all wait for the first, so what comes through
    # has to be what comes first: red is the last of the colours.
    environment["GATE_RED"] = "1"
    run = subprocess.Popen(list(map(str, words)), cwd=tmp_path, env=environment)

    def stored() -> int:
        assert run.poll() is None
        there = path.exists() and value(path, "select count(*) from sqlite_master")
        return value(path, "select count(*) from images") if there else 0

    try:
        until(lambda: stored() > 0, "something is stored")
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    until(lambda: not processes_with(mark), "Ray has ended")
    (closed_gate / "open").touch()
    assert 0 < value(path, "select count(*) from images") < 25
    embed(path, album, encoder=EncoderOptions("gated"))
    alone = tmp_path / "alone.db"
    embed(alone, album, encoder=EncoderOptions("gated"))
    assert contents(path) == contents(alone)


def processes_with(mark: str) -> list[str]:
    """Command lines of processes that have a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:  # it has just ended, or is another user's
            continue
    return found


# The encoder on the other machine


def test_weights_that_the_other_machine_lacks(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    import numpy as np
    import ray
    from torchvision.models import squeezenet1_1

    from datasette_image_similarity import ray_engine, trust
    from datasette_image_similarity.encoders import load_encoder
    from datasette_image_similarity.images import LOCAL_FILES
    from datasette_image_similarity.sources import read_file

    file = tmp_path / "mine.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), file)
    encoder = load_encoder("squeezenet1_1", weights=file)
    trust.note_weights(encoder.spec.weights_sha256, file)
    recipe = ray_engine._recipe(encoder, Layout(1, 1), "auto", "auto")
    read = {"read": read_file, "readers": None}
    task = ray_engine.Task(recipe, "cosine", LOCAL_FILES, None, 1, 1, **read)
    task = task.with_weights()
    file.unlink()
    again = ray_engine._make_encoder(task)
    pixels = np.zeros((2, 224, 224, 3), np.uint8)
    np.testing.assert_array_equal(again.encode(pixels), encoder.encode(pixels))

    other = {file.name: b"other bytes"}
    task = ray_engine.replace(task, files=ray.put(other))
    with pytest.raises(EncoderError, match="SHA-256"):
        ray_engine._make_encoder(task)


def test_an_encoder_that_cannot_be_made_there(
    tmp_path: Path, album: Path, one_actor: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasette_image_similarity import ray_engine

    recipe = ray_engine._recipe

    def changed(*arguments: Any) -> Any:
        made = recipe(*arguments)
        return ray_engine.replace(made, spec=made.spec.replace('"hog"', '"nowhere"'))

    monkeypatch.setattr(ray_engine, "_recipe", changed)
    with pytest.raises(EngineError, match=r"On the node .*nowhere"):
        embed(tmp_path / "many.db", album, engine=one_actor)


# What is asked of a cluster


def nodes(*resources: tuple[int, int]) -> list[Node]:
    return [
        Node(f"node {number}", HOST, {"CPU": cpus, "GPU": gpus})
        for number, (cpus, gpus) in enumerate(resources)
    ]


@pytest.mark.parametrize(
    ("there", "actors", "gpus", "expected"),
    [
        ([(2, 0)], None, None, Layout(1, 2)),
        ([(1, 0), (1, 0)], None, None, Layout(2, 1)),
        ([(16, 0), (8, 0)], None, None, Layout(3, 8)),
        ([(16, 0)], 4, None, Layout(4, 4)),
        ([(16, 2), (16, 2)], None, None, Layout(4, 8, 1)),
        ([(16, 2), (16, 2)], 3, None, Layout(3, 8, 1)),
        ([(16, 2)], None, 0.5, Layout(4, 4, 0.5)),
        ([(16, 2)], None, 0, Layout(2, 8)),
    ],
)
def test_layout(
    there: list, actors: int | None, gpus: float | None, expected: Layout
) -> None:
    assert layout(nodes(*there), actors, gpus) == expected


@pytest.mark.parametrize(
    ("there", "actors", "gpus", "words"),
    [
        ([(1, 0), (1, 0)], 3, None, "3 actors do not fit .* 2 nodes with 2 CPUs .* for 2"),
        ([(8, 0)], None, 1, "1 actor with 1 GPUs each do not fit"),
        ([(8, 2)], 3, 1, "3 actors with 1 GPUs each do not fit .* for 2"),
        ([(0, 0)], None, None, "0 CPUs"),
    ],
)
def test_what_a_cluster_has_not(
    there: list, actors: int | None, gpus: float | None, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        layout(nodes(*there), actors, gpus)


def test_more_actors_than_fit(tmp_path: Path, album: Path, cluster: Any) -> None:
    with (
        RayEngine(cluster.address, actors=9) as engine,
        pytest.raises(EngineError, match="9 actors do not fit"),
    ):
        embed(tmp_path / "many.db", album, engine=engine)


# The last one that needs both nodes


def test_a_node_that_dies(
    tmp_path: Path, album: Path, closed_gate: Path, cluster: Any, engine: RayEngine
) -> None:
    """Both nodes have given something back and are at work when one is killed."""
    path, alone = tmp_path / "many.db", tmp_path / "alone.db"
    nodes = []

    def kill() -> None:
        try:
            until(lambda: len(list(closed_gate.glob("waiting-*"))) == 2, "both at work")
            (lost,) = cluster.worker_nodes
            cluster.remove_node(lost, allow_graceful=False)
            nodes.append(len(cluster.list_all_nodes()))
        finally:
            (closed_gate / "open").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    options = {"encoder": EncoderOptions("gated"), "batch_size": 2}
    two = embed(path, album, engine=engine, **options)
    killer.join()
    assert nodes == [1]
    one = embed(alone, album, **options)
    assert contents(path) == contents(alone)
    assert counts(two) == counts(one) == (24, 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"{HOST}:1", f"No Ray answers at {HOST}:1 ("),
        ("nowhere", "The address of a Ray cluster is HOST:PORT or auto, not nowhere"),
        ("ray://head:10001", "Ray Data needs a driver on a machine of the cluster"),
    ],
)
def test_an_address_that_will_not_do(
    address: str, said: str, tmp_path: Path, album: Path
) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed")
    code = (
        "import sys; from pathlib import Path; from datasette.cli import cli; "
        "cli(sys.argv[1:])"
    )
    words = ["image-similarity", "embed", tmp_path / "new.db", album, "--model", "hog"]
    words += ["--engine", "ray", "--address", address]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=PACKAGE,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"Error: {said}")


def test_options_of_ray_without_it(tmp_path: Path, album: Path) -> None:
    result = command("embed", tmp_path / "new.db", album, "--actors", 2)
    assert result.exit_code == 2
    assert "add --engine ray" in result.output
