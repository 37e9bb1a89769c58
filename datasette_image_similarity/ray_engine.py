"""`embed` on the machines of a Ray cluster: the pipeline, run by Ray Data's actors.

Nothing here distributes anything: Ray Data does. This process lists, plans and writes as
always. What is to be looked at goes to Ray in blocks, Arrow tables of a batch each, some
hundred thousand pictures at a time (a *window*, so that their number needs no memory). Each
actor holds the encoder and a pool of decoders, runs `embed_pictures()` over a block, and
gives back a table of what became of it. Tables come back in the order of the jobs,
whoever made them, so that a run on many machines writes the same rows with the same keys
as a run on one.

Where a node is lost, Ray makes its actors anew on others, once these have room (CPUs for
half of all actors are kept free for that, but no GPUs), and computes again what they had
not given back. Files are read where the actor runs, under the path that they have
here; rows' BLOBs are read here, where the database is, and travel within the block.

Ray and pyarrow are imported when an engine starts, not before.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import trust
from .errors import EngineError, ImageError, ImageSimilarityError
from .images import Decoded, DecoderPool, Limits
from .pipeline import Job, Outcome, embed_pictures
from .roots import as_root, is_address, is_object
from .sources import Picture, read_file

if TYPE_CHECKING:
    import pyarrow as pa

    from .encoders import Encoder, EncoderSpec
    from .encoders.transform import Row, Transform

WINDOW_JOBS = 200_000  # about 40 MB of paths
BLOB_SHARE = 4  # a window's BLOBs fill 1/4 of this node's share of Ray's memory at most
CPUS_AN_ACTOR = 8  # a network uses no more streams: see encoders/running.py
GPU_BLOCK = 512  # pictures that keep a GPU busy, as CudaRunner takes them
CALLS_AN_ACTOR = 2  # blocks at once: while one ends, the other begins
CONNECT_SECONDS = 10
DESCRIBE_SECONDS = 5  # for so long the number of nodes is believed
# Read by Ray when it is imported: addresses stay what they are, and with 127.0.0.1 Ray
# listens nowhere else. (On Windows and macOS that is what it does anyway.)
LOCAL = ("127.0.0.1", "localhost", "::1")
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class RayEngine:
    """Machines that embed: pass it to `ImageCollection.embed(engine=…)`.

    with RayEngine("10.0.0.1:6379") as engine:
        photos.embed("/shared/pictures", engine=engine)

    `address` is that of a cluster, as `ray.init()` takes it ("auto": the one that runs on
    this machine); None starts a Ray on this computer alone, which ends with the engine.
    In a process that has connected to Ray already, that connection is used, and stays.
    `actors` is how many processes hold the encoder: by default as many as the GPUs
    allow, or, where there are none, one for each node, or for each 8 of its cores.
    `gpus_per_actor`: 1 by default where the cluster has GPUs; 0 computes on CPUs.

    The cluster's machines need this package, the same version of it as here, in the
    environment that `ray start` was run in, and must see the files under the same paths.
    Pictures in buckets and at addresses are fetched by the actors, with the credentials
    of their machines. Each has connections of its own: a host gets four from each actor.
    Nothing is started or connected to before there is something to embed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        actors: int | None = None,
        gpus_per_actor: float | None = None,
    ) -> None:
        self.address = address
        self.actors = actors
        self.gpus_per_actor = gpus_per_actor
        self._layout: Layout | None = None  # once it runs
        self._ours = False  # to be shut down again
        self._nodes = (0.0, 0)  # when counted, how many

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; end it, if it was started for this engine."""
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False
        self._layout = None

    def start(self) -> None:
        """Connect, and find out what there is. Raises EngineError."""
        if self._layout is not None:
            return
        ray = _import_ray(self.address)
        if not ray.is_initialized():
            _connect(self.address)
            self._ours = True
        try:
            nodes = [
                Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
                for node in ray.nodes()
                if node["Alive"]
            ]
            self._layout = layout(nodes, self.actors, self.gpus_per_actor)
            _require_package(nodes)
        except BaseException:
            self.close()
            raise

    def describe(self, spec: EncoderSpec) -> str:
        """What embeds, for people: the encoder, actors and nodes."""
        import ray

        counted, nodes = self._nodes
        if time.monotonic() - counted > DESCRIBE_SECONDS:
            nodes = sum(node["Alive"] for node in ray.nodes())
            self._nodes = time.monotonic(), nodes
        made = self._layout
        device = f"{made.gpus:g} GPU" if made.gpus else f"{made.cpus:g} CPU"
        return (
            f"{spec}, by Ray: {_count(made.actors, 'actor')} of {device} each "
            f"on {_count(nodes, 'node')}"
        )

    def embed_pictures(
        self,
        jobs: Iterable[Job],
        *,
        encoder: Encoder,
        metric: str,
        movable: Mapping[str, list[int]],
        stored_vector: Callable[[str], bytes | None],
        read_row: Callable[[Picture], bytes],
        limits: Limits,
        thumbnail: int | None,
        batch_size: int,
        workers: int | None,
        stop: Callable[[], bool],
        read: Callable[[str, int], bytes] = read_file,
        readers: int | None = None,
        give_up: Callable[[], None] | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Iterator[list[Outcome]]:
        """As `pipeline.embed_pictures()`, with actors that compute on `device` in
        `precision`; `workers` are the decoders of each. Raises EngineError.

        Two things are known here alone, and looked up when a vector comes back: that of
        the same bytes is stored already, or they are those of a file that is gone. The
        result is the same; their bytes have been encoded once more than by one process.
        The block that is waited for when `stop()` turns true is the last one: it is made in
        another process, where `give_up` ends nothing.
        """
        self.start()
        made = self._layout
        recipe = _recipe(encoder, made, device, precision)
        task = Task(
            recipe,
            metric=metric,
            limits=limits,
            thumbnail=thumbnail,
            workers=workers or made.cpus,
            cpus=made.cpus,
            read=read,
            readers=readers,
        )
        rows = max(batch_size, GPU_BLOCK) if made.gpus else batch_size
        with _explained():
            task = task.with_weights()
            for window in _windows(jobs, read_row, rows):
                if stop():
                    return
                for table in _computed(window, task, made):
                    outcomes = iter(_outcomes(table))
                    while batch := list(islice(outcomes, batch_size)):
                        yield _settled(batch, movable, stored_vector)
                        if stop():
                            return


def _settled(
    batch: list[tuple[Job, Outcome]],
    movable: Mapping[str, list[int]],
    stored_vector: Callable[[str], bytes | None],
) -> list[Outcome]:
    """Outcomes of actors, with what only the database knows."""
    settled = []
    for job, outcome in batch:
        if outcome.vector is not None:
            gone = movable.get(outcome.sha256) if job.item is None else None
            if gone:
                outcome = Outcome(outcome.picture, outcome.sha256, keep=gone.pop(0))
            elif (stored := stored_vector(outcome.sha256)) is not None:
                outcome = replace(outcome, vector=stored, reused=True)
        settled.append(outcome)
    return settled


# The cluster


def _import_ray(address: str | None) -> Any:
    """Ray, told to keep quiet. Raises EngineError where it is not installed."""
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        if address is None or _place(address)[0] in LOCAL:
            os.environ.setdefault(LOOPBACK, "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EngineError(
            f"Ray is not installed here ({error}): "
            "pip install 'datasette-image-similarity[ray]'"
        ) from error
    return ray


def _place(address: str) -> tuple[str, int]:
    """Host and port of an address; that of the cluster on this machine for "auto".

    Raises EngineError.
    """
    if address.startswith("ray://"):
        raise EngineError(
            "Ray Data needs a driver on a machine of the cluster, not a Ray Client: run "
            "this on one of them, with --address auto"
        )
    given = address
    if address == "auto":
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
        given = os.environ.get("RAY_ADDRESS", "")
        if not given and noted.is_file():
            given = noted.read_text().strip()
        if not given:
            raise EngineError("No Ray runs on this machine: ray start --head starts one")
    host, _, port = given.rpartition(":")
    if not (host and port.isdecimal()):
        raise EngineError(f"The address of a Ray cluster is HOST:PORT or auto, not {given}")
    return host.strip("[]"), int(port)


def _connect(address: str | None) -> None:
    """Connect to a cluster, or start one on this computer. Raises EngineError."""
    import ray

    if address is not None:
        # Ray itself would try for minutes.
        place = _place(address)
        try:
            socket.create_connection(place, CONNECT_SECONDS).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise EngineError(
                f"No Ray answers at {place[0]}:{place[1]} ({reason}): is it running "
                "(ray start), and can this machine reach it?"
            ) from error

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Workers find modules where this process does, however it was started.
        path = os.pathsep.join([_package_folder(), *filter(None, sys.path)])
        options |= {
            "address": "local",
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        }
    else:
        options["address"] = address
    try:
        with _no_stderr():
            ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        where = "a Ray on this computer" if address is None else f"Ray at {address}"
        raise EngineError(f"Cannot connect to {where}: {_in_short(error)}") from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Nothing reaches standard error: Ray's C++ says there that it was told to be quiet."""
    sys.stderr.flush()
    ours = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(nowhere)


def _package_folder() -> str:
    """The folder that this package is imported from."""
    return str(Path(__file__).resolve().parent.parent)


class Node(NamedTuple):
    """A machine of the cluster."""

    id: str
    address: str
    resources: Mapping[str, float]  # "CPU", "GPU", "object_store_memory" (bytes) …

    @property
    def cpus(self) -> int:
        return int(self.resources.get("CPU", 0))

    @property
    def gpus(self) -> float:
        return self.resources.get("GPU", 0)


@dataclass(frozen=True)
class Layout:
    """How many actors, and what each may use."""

    actors: int
    cpus: int  # threads of the network, and decoders
    gpus: float = 0


def layout(nodes: Sequence[Node], actors: int | None, gpus: float | None) -> Layout:
    """What to ask of a cluster: `actors` and the `gpus` of each, None for what fits.

    Raises EngineError when it has not so many: Ray would wait for them for ever.
    """
    if gpus is None:
        gpus = 1 if any(node.gpus >= 1 for node in nodes) else 0
    if gpus:
        fit = sum(int(node.gpus / gpus + 1e-9) for node in nodes)
        _require_fit(actors, fit, f"with {gpus:g} GPUs each", nodes)
        with_gpus = [node for node in nodes if node.gpus >= gpus]
        cpus = min(node.cpus * gpus / node.gpus for node in with_gpus)
        return Layout(actors or fit, max(1, int(cpus)), gpus)
    _require_fit(actors, sum(node.cpus for node in nodes), "", nodes)
    if actors is None:
        smallest = min(node.cpus for node in nodes if node.cpus)
        cpus = min(CPUS_AN_ACTOR, smallest)
        return Layout(_fitting(nodes, cpus), cpus)
    cpus = max(node.cpus for node in nodes)
    while _fitting(nodes, cpus) < actors:
        cpus -= 1
    return Layout(actors, cpus)


def _fitting(nodes: Sequence[Node], cpus: int) -> int:
    """How many actors of so many CPUs there is room for."""
    return sum(node.cpus // cpus for node in nodes)


def _require_fit(actors: int | None, fit: int, each: str, nodes: Sequence[Node]) -> None:
    if max(1, actors or 0) <= fit:
        return
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    wanted = " ".join(filter(None, (_count(actors or 1, "actor"), each)))
    raise EngineError(
        f"{wanted} do not fit into the cluster: its {_count(len(nodes), 'node')} with "
        f"{_count(cpus, 'CPU')} and {gpus:g} GPUs in all have room for {fit:,}"
    )


def _require_package(nodes: Sequence[Node]) -> None:
    """Raise EngineError unless each node has this package, in this version."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from . import __version__

    # An inner function travels by value: it needs nothing of ours to arrive.
    def version() -> str:
        try:
            from datasette_image_similarity import __version__ as theirs
        except ImportError as error:
            return f"none ({error})"
        return theirs

    ask = ray.remote(num_cpus=0, max_retries=0)(version)
    asked = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote()
        for node in nodes
    ]
    for node, answer in zip(nodes, asked, strict=True):
        with _explained():
            theirs = ray.get(answer)
        if theirs != __version__:
            raise EngineError(
                f"The node {node.address} has not datasette-image-similarity "
                f"{__version__} in the Python that Ray was started with, but {theirs}: "
                "install it there, in the same version, and start Ray again"
            )


@contextmanager
def _explained() -> Iterator[None]:
    """Say in words what Ray could not do."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"Ray gave up: {_in_short(error)}. What was stored stays: run this again to "
            "go on"
        ) from error


def _in_short(error: BaseException) -> str:
    """The last line: Ray puts the traceback of the other machine before it."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# What goes to the actors


@dataclass(frozen=True)
class Recipe:
    """How an actor makes the encoder, the very same as this process has."""

    spec: str  # JSON of the EncoderSpec
    transform: Sequence[Row] | None
    device: str
    precision: str
    weights: str | None  # where the file, or the folder, lies on this machine


@dataclass(frozen=True)
class Task:
    """What an actor is made of."""

    recipe: Recipe
    metric: str
    limits: Limits
    thumbnail: int | None
    workers: int
    cpus: int
    read: Callable[[str, int], bytes]  # travels with what it needs
    readers: int | None
    files: Any = None  # a reference to the weights' bytes by name, for machines without

    def with_weights(self) -> Task:
        """With the bytes of weights that are this user's own put into Ray's memory.

        Published ones each machine fetches for itself.
        """
        import ray

        if self.recipe.weights is None:
            return self
        place = Path(self.recipe.weights)
        files = [place]
        if place.is_dir():  # of open_clip's
            known = (".json", ".safetensors")
            files = sorted(file for file in place.iterdir() if file.suffix in known)
        return replace(
            self, files=ray.put({file.name: file.read_bytes() for file in files})
        )


def _recipe(encoder: Encoder, made: Layout, device: str, precision: str) -> Recipe:
    """How actors make this encoder. Raises EngineError for what they cannot."""
    if device in ("cuda", "mps") and not made.gpus:
        raise EngineError(f"--device {device} needs --gpus-per-actor 1, say, with Ray")
    if encoder.sample:
        raise EngineError(
            "--precision int8 is calibrated with the first pictures, which would be others "
            "for each actor: leave it out with --engine ray"
        )
    if made.gpus:
        device = "cuda" if device == "auto" else device
    elif precision == "auto":
        # The same on all machines, whatever each would choose by itself.
        precision = encoder.precision.split()[0]
    spec = encoder.spec
    transform: Transform | None = getattr(encoder, "transform", None)
    file = trust.weights_file(spec.weights_sha256)
    return Recipe(
        spec=spec.to_json(),
        transform=transform.rows() if transform else None,
        device=device,
        precision=precision,
        weights=str(file) if file and file.exists() else None,
    )


def _windows(
    jobs: Iterable[Job], read_row: Callable[[Picture], bytes], rows: int
) -> Iterator[list[pa.Table]]:
    """Tables of `rows` jobs, as many together as there is room for."""
    most_bytes = _memory_here() // BLOB_SHARE
    jobs = iter(jobs)
    while True:
        window: list[pa.Table] = []
        count = size = 0
        while count < WINDOW_JOBS and size < most_bytes:
            some = list(islice(jobs, rows))
            if not some:
                break
            window.append(_job_table(some, read_row))
            count += len(some)
            size += window[-1].nbytes
        if not window:
            return
        yield window


def _memory_here() -> int:
    """What Ray may keep in memory on this node, in bytes."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    found = [n["Resources"] for n in ray.nodes() if n["NodeID"] == here]
    return int(found[0].get("object_store_memory", 0)) if found else 1 << 30


def _computed(window: list[pa.Table], task: Task, made: Layout) -> Iterator[pa.Table]:
    """What became of each block, in order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if made.gpus:
        share = {"num_cpus": made.cpus, "num_gpus": made.gpus}
    else:
        # Half of what it will use, so that the actors of a lost node find room on others.
        share = {"num_cpus": made.cpus / 2}
    results = ray.data.from_arrow(window).map_batches(
        Actor,
        fn_constructor_args=(task,),
        batch_size=None,  # a block as it is
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=min(made.actors, len(window)),
            max_concurrent_calls_per_actor=CALLS_AN_ACTOR,
            enable_true_multi_threading=True,
        ),
        **share,
    )
    for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        broken = table.column("broken")[0].as_py()
        if broken is not None:
            raise EngineError(broken)
        yield table


# On the machine that embeds


class Actor:
    """Holds an encoder and decoders, and embeds a block at a time, or two."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._broken: str | None = None
        os.environ["OMP_NUM_THREADS"] = str(task.cpus)  # read when torch is loaded
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(task.cpus)
        self._decoders = DecoderPool(task.limits, task.workers)
        try:
            self._encoder = _make_encoder(task)
        except ImageSimilarityError as error:
            self._broken = f"On the node {platform.node()}: {error}"

    def __call__(self, block: pa.Table) -> pa.Table:
        """The table of outcomes of a table of jobs, in the same order."""
        task = self._task
        jobs, blobs = _jobs(block)
        outcomes: list[Outcome] = []
        if self._broken is None:
            try:
                for batch in embed_pictures(
                    jobs,
                    encoder=self._encoder,
                    metric=task.metric,
                    movable={},
                    stored_vector=lambda sha256: None,
                    read_row=lambda picture: next(blobs),
                    limits=task.limits,
                    thumbnail=task.thumbnail,
                    batch_size=len(jobs),
                    workers=task.workers,
                    stop=lambda: False,
                    read=task.read,
                    readers=task.readers,
                    decoders=self._decoders,
                ):
                    outcomes += map(_told, batch)
                return _outcome_table(block, outcomes)
            except ImageSimilarityError as error:
                self._broken = f"On the node {platform.node()}: {error}"
        return _broken_table(block, self._broken)


def _make_encoder(task: Task) -> Encoder:
    """The encoder of a task. Raises EncoderError unless it is the very same here."""
    from .encoders import EncoderSpec, restore_encoder
    from .encoders.transform import Transform

    recipe = task.recipe
    spec = EncoderSpec.from_json(recipe.spec)
    rows = recipe.transform
    options = {
        "transform": Transform.from_rows(rows, spec) if rows else None,
        "device": recipe.device,
        "precision": recipe.precision,
    }
    if recipe.weights is None or os.path.exists(recipe.weights):
        file = Path(recipe.weights) if recipe.weights else None
        return restore_encoder(spec, weights_file=file, **options)
    import ray

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, Path(recipe.weights).name)
        files = ray.get(task.files)
        if list(files) != [place.name]:
            place.mkdir()
        for name, data in files.items():
            (place / name if place.is_dir() else place).write_bytes(data)
        return restore_encoder(spec, weights_file=place, **options)


def _told(outcome: Outcome) -> Outcome:
    """With a failure that this machine is the reason of told as such."""
    file = outcome.picture.file
    elsewhere = file is None or is_object(file) or is_address(file)
    if outcome.failure is None or elsewhere or os.path.exists(file):
        return outcome
    reason = f"not on the machine that was to read it ({platform.node()})"
    return replace(outcome, failure=reason)


# Tables: of jobs, and of what became of them


def _job_table(jobs: Sequence[Job], read_row: Callable[[Picture], bytes]) -> pa.Table:
    """A row for each job, with the BLOB of one that is no file.

    Names of files may hold any bytes, so they travel as such.
    """
    import pyarrow as pa

    rows = [_job_row(job, read_row) for job in jobs]
    schema = pa.schema(
        [
            ("item", pa.int64()),
            ("known", pa.string()),
            ("pk", pa.string()),
            ("path", pa.binary()),
            ("root", pa.binary()),
            ("file", pa.binary()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("problem", pa.string()),
            ("missing", pa.bool_()),
            ("blob", pa.large_binary()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _job_row(job: Job, read_row: Callable[[Picture], bytes]) -> dict[str, Any]:
    picture, blob = job.picture, None
    problem = picture.problem
    if problem is None and picture.file is None:
        try:
            blob = read_row(picture)
        except ImageError as error:
            problem = str(error)
    return {
        "item": job.item,
        "known": job.sha256,
        "pk": json.dumps(picture.pk),
        "path": _bytes(picture.path),
        "root": _bytes(None if picture.root is None else str(picture.root)),
        "file": _bytes(picture.file),
        "size": picture.size,
        "mtime_ns": picture.mtime_ns,
        "problem": problem,
        "missing": picture.missing,
        "blob": blob,
    }


def _bytes(name: str | Path | None) -> bytes | None:
    return None if name is None else os.fsencode(name)


def _name(data: bytes | None) -> str | None:
    return None if data is None else os.fsdecode(data)


def _jobs(table: pa.Table) -> tuple[list[Job], Iterator[bytes]]:
    """The jobs in a table, and the BLOBs of those that have one."""
    columns = [name for name in table.column_names if name != "blob"]
    jobs = [_job(row) for row in table.select(columns).to_pylist()]
    blobs = (one.as_py() for one in table.column("blob") if one.is_valid)
    return jobs, blobs


def _job(row: Mapping[str, Any]) -> Job:
    root = _name(row["root"])
    picture = Picture(
        pk=json.loads(row["pk"]),
        path=_name(row["path"]),
        root=None if root is None else as_root(root),
        file=_name(row["file"]),
        size=row["size"],
        mtime_ns=row["mtime_ns"],
        problem=row["problem"],
        missing=row["missing"],
    )
    return Job(picture, row["item"], row["known"])


def _outcome_table(block: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
    """The block without its BLOBs, and what became of each row beside it."""
    import pyarrow as pa

    rows = [_outcome_row(outcome) for outcome in outcomes]
    schema = pa.schema(
        [
            ("read", pa.int64()),
            ("sha256", pa.string()),
            ("kept", pa.bool_()),
            ("reused", pa.bool_()),
            ("failure", pa.string()),
            ("width", pa.int64()),
            ("height", pa.int64()),
            ("format", pa.string()),
            ("facts", pa.string()),
            ("note", pa.string()),
            ("thumbnail", pa.binary()),
            ("vector", pa.binary()),  # float32, as it is stored
            ("broken", pa.string()),
        ]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    for name in block.column_names:
        if name != "blob":
            table = table.append_column(name, block.column(name))
    return table


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    row = {
        "read": outcome.picture.size,
        "sha256": outcome.sha256,
        "kept": outcome.keep is not None,
        "reused": outcome.reused,
        "failure": outcome.failure,
        "vector": outcome.vector,
    }
    if decoded := outcome.decoded:
        row |= {
            "width": decoded.width,
            "height": decoded.height,
            "format": decoded.format,
            "facts": json.dumps(decoded.facts),
            "note": decoded.note,
            "thumbnail": decoded.thumbnail,
        }
    return row


def _broken_table(block: pa.Table, why: str) -> pa.Table:
    """What an actor gives back that cannot embed anything."""
    outcomes = [Outcome(Picture(), failure=why)] * len(block)
    table = _outcome_table(block, outcomes)
    import pyarrow as pa

    place = table.column_names.index("broken")
    return table.set_column(place, "broken", pa.array([why] * len(block), pa.string()))


def _outcomes(table: pa.Table) -> Iterator[tuple[Job, Outcome]]:
    """The jobs in a table of outcomes, and what became of them."""
    for row in table.to_pylist():
        job = _job(row)
        yield job, _outcome(row, job)


def _outcome(row: Mapping[str, Any], job: Job) -> Outcome:
    picture = job.picture._replace(size=row["read"])
    if row["failure"] is not None:
        return Outcome(picture, failure=row["failure"])
    if row["kept"]:
        return Outcome(picture, row["sha256"], keep=job.item)
    decoded = Decoded(
        width=row["width"],
        height=row["height"],
        format=row["format"],
        facts=json.loads(row["facts"]),
        note=row["note"],
        thumbnail=row["thumbnail"],
    )
    return Outcome(
        picture,
        row["sha256"],
        decoded=decoded,
        vector=row["vector"],
        reused=row["reused"],
    )
