"""Buckets: objects listed page by page, looked up, and read, through s3fs and gcsfs.

These file systems of fsspec bring credentials, sessions and retries; both are asked by
bucket and key, not by fsspec's paths, in which "?", "//" or a "/" at the end of a key
have meanings of their own. They are imported when a bucket is first asked. Endpoint and
credentials come from the usual environment (AWS_PROFILE, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_S3_ANON, …) and are noted nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from .errors import CollectionError, ImageError, ImageSimilarityError, MissingFile
from .roots import BucketRoot

T = TypeVar("T")
PAGE = 1000  # objects listed at once: the most that S3 gives
CONNECTIONS = 32
SECONDS = 60.0  # that an answer may take, with all retries
IN_A_ROW = 16  # failures of a store as a whole, after which it is left alone
PAUSE = 60.0  # for so many seconds


class Object(NamedTuple):
    """What is known of an object without reading it."""

    key: str
    size: int
    mtime_ns: int  # see `version()`


class Page(NamedTuple):
    """Some objects of a listing, in order of key; `next` asks for more, if there are."""

    objects: list[Object]
    next: str | None


class Store(Protocol):
    """One kind of store. All raise whatever its library does."""

    def page(
        self, bucket: str, prefix: str, count: int, after: str | None, seconds: float
    ) -> Page: ...

    def find(self, bucket: str, key: str, seconds: float) -> Object: ...

    def read(self, bucket: str, key: str, count: int, seconds: float) -> bytes:
        """The first `count` bytes of an object."""

    def end(self) -> None:
        """End what other threads are asking: that raises ImageError."""


class Buckets:
    """Objects in buckets. One serves any number of threads.

    `seconds` is what each answer may take. A process that was forked gets clients of its
    own, because connections cannot be shared. Where a store is away or the credentials have
    expired, it makes no sense to wait for each of a million objects: then whatever is asked
    raises CollectionError for a minute.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._stores: dict[tuple[int, str], Store] = {}
        self._in_a_row = 0
        self._until = 0.0

    def check(self, root: BucketRoot, *, listing: bool) -> None:
        """Raise CollectionError where the bucket is not to be had; with `listing` also
        where it may not be listed."""
        try:
            self._page(root, 1, None)
        except Exception as error:  # see `_words`
            if listing or not _is_forbidden(error):
                raise CollectionError(f"{root}: {_words(error, root.scheme)}") from error

    def objects(self, root: BucketRoot) -> Iterator[Object]:
        """All objects below a root, in order of key, page by page.

        Raises ImageError when a page cannot be had.
        """
        after: str | None = None
        while True:
            try:
                page = self._page(root, PAGE, after)
            except Exception as error:
                raise ImageError(_words(error, root.scheme)) from error
            yield from page.objects
            if page.next is None:
                return
            after = page.next

    def find(self, file: str) -> Object:
        """What is known of the object at `scheme://bucket/key`. Raises ImageError."""
        return self._about_one(file, lambda store: store.find)

    def read(self, file: str, max_bytes: int) -> bytes:
        """The bytes of an object. Raises ImageError, also for more than `max_bytes`."""
        data = self._about_one(file, lambda store: partial(store.read, count=max_bytes + 1))
        if len(data) > max_bytes:
            raise ImageError(f"more than {max_bytes / 1e6:,.0f} MB")
        return data

    def close(self) -> None:
        """Let go of the connections. What other threads are reading ends with an
        ImageError."""
        for (process, _), store in list(self._stores.items()):
            if process == os.getpid():
                store.end()
        self._stores.clear()

    def _page(self, root: BucketRoot, count: int, after: str | None) -> Page:
        store = self._store(root.scheme)
        return store.page(root.bucket, root.start, count, after, self._seconds)

    def _about_one(self, file: str, asking: Callable[[Store], Callable[..., T]]) -> T:
        """What a store's method says of one object, and how the store is. Raises
        ImageError; CollectionError while the store is left alone."""
        scheme, _, rest = file.partition("://")
        bucket, _, key = rest.partition("/")
        if self._in_a_row >= IN_A_ROW and time.monotonic() < self._until:
            raise CollectionError(
                f"{scheme}://{bucket} has failed {self._in_a_row} times in a row, for now "
                "it is not asked any more. Run the same command again to go on"
            )
        try:
            answer = asking(self._store(scheme))(bucket, key, seconds=self._seconds)
        except Exception as error:
            self._in_a_row = self._in_a_row + 1 if _concerns_all(error) else 0
            self._until = time.monotonic() + PAUSE
            raise _image_error(error, scheme) from error
        self._in_a_row = 0
        return answer

    def _store(self, scheme: str) -> Store:
        mine = (os.getpid(), scheme)
        if mine not in self._stores:
            # Two threads may both make one: then the second is not used.
            self._stores.setdefault(mine, _store(scheme))
        return self._stores[mine]


def version(when: datetime, tag: str) -> int:
    """When an object was last written, in nanoseconds, to the second; below that, a hash
    of its tag.

    An object that was overwritten within a second differs in it from the one before.
    """
    digest = hashlib.sha256(tag.encode()).digest()
    return int(when.timestamp()) * 10**9 + int.from_bytes(digest[:8], "big") % 10**9


def _store(scheme: str) -> Store:
    try:
        return _S3() if scheme == "s3" else _Gcs()
    except ImportError as error:
        raise CollectionError(
            f"{scheme}:// needs {error.name}: pip install "
            "'datasette-image-similarity[cloud]'"
        ) from None


class _Calls:
    """Calls of a file system's coroutines, which run in a thread of fsspec's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[Future] = set()
        self._ended = False

    def __call__(
        self,
        function: Callable[..., Awaitable[Any]],
        *arguments: Any,
        timeout: float,
        **options: Any,
    ) -> Any:
        """What it gives. Raises what it raises, or TimeoutError; ImageError once ended."""

        async def run() -> Any:
            return await function(*arguments, **options)

        running = asyncio.run_coroutine_threadsafe(run(), self._loop)
        self._running.add(running)
        try:
            if self._ended:
                raise CancelledError
            return running.result(timeout)
        except CancelledError:
            raise ImageError("the reading was stopped") from None
        finally:
            self._running.discard(running)
            running.cancel()

    def end(self) -> None:
        """Cancel those that run, and those to come."""
        self._ended = True
        for one in list(self._running):
            one.cancel()


class _S3:
    """Amazon S3, and what speaks its language."""

    def __init__(self) -> None:
        from s3fs import S3FileSystem

        self._fs = S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": 5,
                "read_timeout": 30,
                "retries": {"total_max_attempts": 3, "mode": "standard"},
                "max_pool_connections": CONNECTIONS,
            },
        )
        self._fs.retries = 2
        self._call = _Calls(self._fs.loop)
        self.end = self._call.end

    def page(
        self, bucket: str, prefix: str, count: int, after: str | None, seconds: float
    ) -> Page:
        more = {} if after is None else {"ContinuationToken": after}
        answer = self._call(
            self._fs._call_s3,
            "list_objects_v2",
            Bucket=bucket,
            Prefix=prefix,
            MaxKeys=count,
            timeout=seconds,
            **more,
        )
        objects = [
            self._object(one["Key"], one["Size"], one) for one in answer.get("Contents", [])
        ]
        return Page(objects, answer.get("NextContinuationToken"))

    def find(self, bucket: str, key: str, seconds: float) -> Object:
        answer = self._call(
            self._fs._call_s3, "head_object", Bucket=bucket, Key=key, timeout=seconds
        )
        return self._object(key, answer["ContentLength"], answer)

    def _object(self, key: str, size: int, facts: dict[str, Any]) -> Object:
        return Object(key, size, version(facts["LastModified"], facts.get("ETag", "")))

    def read(self, bucket: str, key: str, count: int, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        last = False
        while True:
            left = max(end - time.monotonic(), 0.1)
            try:
                answer = self._call(
                    self._fs._call_s3,
                    "get_object",
                    Bucket=bucket,
                    Key=key,
                    Range=f"bytes=0-{count - 1}",
                    timeout=left,
                )
            except OSError as error:
                if _code(error) in ("InvalidRange", "416"):  # nothing to take a part of
                    return b""
                raise
            body = answer["Body"]
            try:
                left = max(end - time.monotonic(), 0.1)
                return self._call(body.read, timeout=left)
            except Exception:  # cut off half-way: once more
                if last or time.monotonic() > end:
                    raise
                last = True
            finally:
                body.close()


class _Gcs:
    """Google Cloud Storage, by its JSON API."""

    FIELDS = "name,size,timeCreated,generation"

    def __init__(self) -> None:
        from gcsfs import GCSFileSystem

        # It logs each error with its traceback, which we say in words.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        self._fs = GCSFileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            access="read_only",
            requests_timeout=30,
        )
        self._call = _Calls(self._fs.loop)
        self.end = self._call.end

    def page(
        self, bucket: str, prefix: str, count: int, after: str | None, seconds: float
    ) -> Page:
        answer = self._call(
            self._fs._call,
            *("GET", "b/{}/o", bucket),
            prefix=prefix,
            maxResults=count,
            pageToken=after,
            fields=f"nextPageToken,items({self.FIELDS})",
            json_out=True,
            timeout=seconds,
        )
        objects = [self._object(one) for one in answer.get("items", [])]
        return Page(objects, answer.get("nextPageToken"))

    def find(self, bucket: str, key: str, seconds: float) -> Object:
        answer = self._call(
            self._fs._call,
            *("GET", "b/{}/o/{}", bucket, key),
            fields=self.FIELDS,
            json_out=True,
            timeout=seconds,
        )
        return self._object(answer)

    def _object(self, facts: dict[str, Any]) -> Object:
        made = datetime.fromisoformat(facts["timeCreated"].replace("Z", "+00:00"))
        tag = str(facts.get("generation", ""))
        return Object(facts["name"], int(facts["size"]), version(made, tag))

    def read(self, bucket: str, key: str, count: int, seconds: float) -> bytes:
        try:
            _, data = self._call(
                self._fs._call,
                *("GET", "b/{}/o/{}", bucket, key),
                alt="media",
                headers={"Range": f"bytes=0-{count - 1}"},
                timeout=seconds,
            )
        except Exception as error:
            if _code(error) == "416":
                return b""
            raise
        return data


def _code(error: BaseException) -> str:
    """What the store calls the error: "NoSuchKey", "403", or ""."""
    response = getattr(error.__cause__, "response", None)  # botocore's, below s3fs's
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "code", None) or "")  # gcsfs's


def _is_forbidden(error: BaseException) -> bool:
    return (
        isinstance(error, PermissionError)
        or _code(error) in ("401", "403")
        or str(error).startswith("Forbidden: ")  # gcsfs's
    )


def _is_away(error: BaseException) -> bool:
    kind = type(error).__name__
    return isinstance(error, (TimeoutError, ConnectionError)) or any(
        part in kind for part in ("Timeout", "Connect", "HTTPClientError")
    )


def _concerns_all(error: BaseException) -> bool:
    """Whether other objects of the store would fail in the same way."""
    kind = type(error).__name__
    return (
        _is_away(error)
        or "Credentials" in kind
        or _code(error)
        in ("401", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")
    )


def _image_error(error: Exception, scheme: str) -> ImageSimilarityError:
    if isinstance(error, ImageSimilarityError):
        return error
    if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
        return MissingFile("no such object in the bucket")
    return ImageError(f"cannot be read: {_words(error, scheme)}")


CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public "
    "bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default "
    "login; for a public bucket FSSPEC_GS_TOKEN=anon",
}


def _words(error: Exception, scheme: str) -> str:
    """What went wrong, and what to do.

    There is no telling what comes out of the libraries below a store's, so whatever it
    is, it is about this one object or bucket.
    """
    if isinstance(error, ImageSimilarityError):
        return str(error)
    said = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket"
    if _code(error) == "401":
        return f"it may not be read without credentials: {CREDENTIALS[scheme]}"
    if _is_forbidden(error):
        return f"these credentials may not read it ({_code(error) or 'forbidden'})"
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return "the store has not answered in time"
    if "Credentials" in kind or "Profile" in kind or "Token" in kind:
        return f"{said}: {CREDENTIALS[scheme]}"
    if "Payload" in kind or "Incomplete" in kind:
        return "the connection broke off"
    if _is_away(error):
        return f"the store cannot be reached: {said}"
    return said or kind
