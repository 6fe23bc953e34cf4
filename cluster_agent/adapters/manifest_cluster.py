"""A directory of manifests that behaves as a cluster does.

The files say what there is, as if a person applied them, and deleted what was removed, all the time; they are never
written. What an API server would have added (UIDs, resourceVersions, finalizers, status, the claims of pods) lives in
an object store and, so that a restart finds it again, in a journal. Reading the files is in `manifest_files`,
what follows from them in `reconciler`.
"""

import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
from anyio import to_thread
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from watchfiles import Change, awatch

from cluster_agent.adapters.journal import Journal, JournalError
from cluster_agent.adapters.manifest_files import Content, ManifestFile, ManifestFiles
from cluster_agent.adapters.object_store import (
    ObjectKey,
    ObjectStore,
    StoredObject,
    StoreEvent,
    copy_of,
    key_of,
)
from cluster_agent.adapters.reconciler import Origin, Reconciler
from cluster_agent.ports import ApiObject, ExpiredError, Kind, Listing, WatchEvent
from schemas.errors import ManifestError
from schemas.resource.untyped import as_dict

_HISTORY_LENGTH = 10_000  # changes that a watch may be behind before it has to list again
_DEBOUNCE_MS = 500
_SETTLE_S = 0.2
_READINGS = 3  # of files that do not come to rest together; then those that rest are taken one by one


class _Record(msgspec.Struct, frozen=True):
    key: ObjectKey
    object: ApiObject
    error: str
    origin: Origin


class _Batch(msgspec.Struct, frozen=True):
    """What one step changed. resource_version: the store's after it."""

    resource_version: int
    records: list[_Record]
    gone: list[ObjectKey]


class ManifestCluster:
    """The agent's cluster port over files of manifests; `rescan` or `run` take in what changed there."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        data_dir: Path | None = None,
        report: Callable[[ManifestError], None] = lambda _: None,
        new_uid: Callable[[int], str] = lambda _: str(uuid.uuid4()),
        now: Callable[[], str] = lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        settle: Callable[[], Awaitable[None]] = lambda: anyio.sleep(_SETTLE_S),
        poll_s: float = 5.0,
    ) -> None:
        """Read all files once; what was removed since the last time is deleted now.

        paths: directories, read with what is below them, and files. Of two manifests for one object the one that comes
        first counts, by the order of `paths` and then of names.
        data_dir: where to keep what is not in the files; None forgets it with the process.
        report: is told of each of `problems` and `waiting` once, and again when its file changes.
        settle: waits for as long as files must stay as they are before `run` believes them.
        poll_s: how often `run` looks without being told, for file systems that do not tell.
        Raises: ManifestError if a path cannot be read; JournalError if the data directory cannot be used.
        """
        self._reader = ManifestFiles(paths)
        self._data_dir = data_dir
        self._report = report
        self._settle, self._poll_s = settle, poll_s
        self._refreshing = anyio.Lock()
        self._store = ObjectStore(new_uid=new_uid, now=now)
        self._files: dict[str, ManifestFile] = {}
        self._unreadable: ManifestError | None = None  # a directory: its files stand as they were
        self._reported: set[str] = set()
        self._committed = 0  # the store's resourceVersion that is on disk, and that watches have seen
        self._changed = anyio.Event()
        self._failure: JournalError | None = None
        contents = self._reader.fetch()
        self._journal = Journal(data_dir / "cluster.journal") if data_dir else None
        try:
            self._reconciler = Reconciler(self._store, self._restore())
            self._apply(self._reader.parse(contents, self._files))
        except BaseException:
            self.close()
            raise
        self._tell()

    @property
    def problems(self) -> list[ManifestError]:
        """What is wrong with the files now, but for objects that cannot be read: these are delivered, with `error`."""
        return ([self._unreadable] if self._unreadable else []) + self._reconciler.problems

    @property
    def waiting(self) -> list[ManifestError]:
        """Pods whose claims cannot be made yet, for want of a template."""
        return list(self._reconciler.waiting)

    @property
    def broken_files(self) -> list[str]:
        """Files in which something could not be parsed; what they had before stays as it was."""
        return [path for path, file in self._files.items() if file.is_broken]

    @property
    def skipped(self) -> dict[str, int]:
        """How many objects were passed over because their kind does not concern us, by kind."""
        counts: dict[str, int] = {}
        for file in self._files.values():
            for kind, count in file.skipped.items():
                counts[kind] = counts.get(kind, 0) + count
        return dict(sorted(counts.items()))

    def close(self) -> None:
        """Let another process use the data directory. Nothing works here any more then."""
        if self._journal:
            self._failure = JournalError("the cluster is closed")
            self._journal.close()
            self._changed.set()

    # Following the files

    def rescan(self) -> None:
        """Take in the files as they are now."""
        self._check()
        try:
            self._apply(self._reader.parse(self._reader.fetch(), self._files))
        except ManifestError as problem:
            self._unreadable = problem
        self._tell()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take in what changes in the files until cancelled."""
        cancelled = anyio.Event()
        async with anyio.create_task_group() as tg:
            tg.start_soon(_set_when_cancelled, cancelled)
            # Of a single file its directory is watched: an editor that writes anew and renames leaves nothing to watch.
            for paths, is_recursive in ((self._reader.directories, True), (self._reader.parents, False)):
                if paths:
                    tg.start_soon(self._follow, paths, is_recursive, cancelled)
            task_status.started()

    async def _follow(self, paths: Sequence[Path], is_recursive: bool, cancelled: anyio.Event) -> None:
        changes = awatch(
            *paths,
            watch_filter=self._concerns_us,
            debounce=_DEBOUNCE_MS,
            rust_timeout=int(self._poll_s * 1000),
            yield_on_timeout=True,
            recursive=is_recursive,
            ignore_permission_denied=True,
            stop_event=cancelled,  # its thread does not hear of a cancellation otherwise, and holds us up for poll_s
        )
        async for _ in changes:
            await self._refresh()

    def _concerns_us(self, _change: Change, path: str) -> bool:
        return self._data_dir is None or not Path(path).absolute().is_relative_to(self._data_dir.absolute())

    async def _refresh(self) -> None:
        """Take in the files once they have come to rest: one that is just being written or replaced is as it was.

        First all of them together, for what moves from one file to another must not be missed in between; but where
        some file always changes, nothing would ever be taken in.
        """
        async with self._refreshing:
            try:
                contents = await to_thread.run_sync(self._reader.fetch)
                readings = 0
                while _digests(contents) != _digests(self._files):
                    await self._settle()
                    before, contents = contents, await to_thread.run_sync(self._reader.fetch)
                    readings += 1
                    if contents == before or readings >= _READINGS:
                        files = await to_thread.run_sync(self._reader.parse, contents, self._files)
                        self._apply(self._at_rest(before, contents, files))
                        self._tell()
                        readings = 0
                self._unreadable = None
            except ManifestError as problem:
                # It says nothing about the objects there: a mount that is gone must not delete claims.
                self._unreadable = problem
            self._tell()

    def _at_rest(
        self, before: dict[str, Content], contents: dict[str, Content], files: dict[str, ManifestFile]
    ) -> dict[str, ManifestFile]:
        """`files`, as `contents` gives them; those that were not the same `before` as they are known."""
        found = {}
        for path in self._reader.in_order({*before, *contents, *self._files}):
            is_at_rest = before.get(path) == contents.get(path)
            file = (files if is_at_rest else self._files).get(path)
            if file is not None:
                found[path] = file
        return found

    def _apply(self, files: dict[str, ManifestFile]) -> None:
        for path, file in files.items():
            if path not in self._files or file.digest != self._files[path].digest:
                self._reported -= {str(problem) for problem in file.problems}
        self._files = files
        self._unreadable = None
        self._reconciler.reconcile(files.values())
        self._commit()

    def _tell(self) -> None:
        current = self.problems + self.waiting
        for problem in current:
            if str(problem) not in self._reported:
                self._report(problem)
        self._reported = {str(problem) for problem in current}

    # The store on disk

    def _restore(self) -> dict[ObjectKey, Origin]:
        batches = self._journal.read() if self._journal else []
        records: dict[ObjectKey, _Record] = {}
        for data in batches:
            batch = msgspec.json.decode(data, type=_Batch)
            records.update((record.key, record) for record in batch.records)
            for key in batch.gone:
                records.pop(key, None)
            self._committed = batch.resource_version
        objects = ((key, StoredObject(record.object, record.error)) for key, record in records.items())
        self._store.restore(objects, self._committed)
        return {key: record.origin for key, record in records.items()}

    def _commit(self) -> None:
        """Make what was done since the last time durable, and only then let watches see it."""
        changed = {event.key for event in self._store.events_since(self._committed)} | self._reconciler.touched
        if changed and self._journal:
            try:
                if self._journal.is_begun and not self._journal.is_long:
                    self._journal.append(self._batch(changed))
                else:
                    self._journal.begin(self._batch(set(self._store.objects)))
            except JournalError as error:
                self._failure = error
                self._changed.set()
                raise
        for key in changed - set(self._store.objects):
            self._reconciler.origins.pop(key, None)
        self._reconciler.touched.clear()
        self._committed = self._store.resource_version
        self._store.compact(_HISTORY_LENGTH)
        self._changed.set()
        self._changed = anyio.Event()

    def _batch(self, keys: set[ObjectKey]) -> _Batch:
        objects = self._store.objects
        records = [
            _Record(key, objects[key].object, objects[key].error, self._reconciler.origins[key])
            for key in sorted(keys & set(objects))
        ]
        return _Batch(self._store.resource_version, records, sorted(keys - set(objects)))

    def _check(self) -> None:
        # After a failed append nobody knows what is on disk: memory must not go on from there.
        if self._failure is not None:
            raise self._failure

    # The port

    async def list_objects(self, kind: Kind) -> Listing:
        """See Cluster."""
        await checkpoint()
        self._check()
        found = self._store.list_objects(kind)
        errors = {stored.object["metadata"]["uid"]: stored.error for stored in found if stored.error}
        return Listing([stored.object for stored in found], str(self._store.resource_version), errors)

    def watch(self, kind: Kind, resource_version: str) -> AsyncIterator[WatchEvent]:
        """See Cluster."""
        return _Watch(self, kind, resource_version)

    async def get_claim(self, namespace: str, name: str) -> ApiObject | None:
        """See Cluster."""
        await checkpoint()
        self._check()
        return self._store.get("claim", namespace, name)

    async def get_pod(self, namespace: str, name: str) -> ApiObject | None:
        """See Cluster."""
        await checkpoint()
        self._check()
        return self._store.get("pod", namespace, name)

    async def update_claim(self, obj: ApiObject) -> ApiObject:
        """See Cluster."""
        return await self._update(obj, self._store.update_claim)

    async def update_claim_status(self, obj: ApiObject) -> ApiObject:
        """See Cluster."""
        return await self._update(obj, self._store.update_claim_status)

    async def _update(self, obj: ApiObject, write: Callable[[ApiObject], ApiObject]) -> ApiObject:
        metadata = as_dict(obj.get("metadata"))
        if not metadata.get("uid") or not metadata.get("resourceVersion"):
            raise ValueError("a claim is written only with the uid and resourceVersion that it was read with")
        await checkpoint()
        self._check()
        # No await from here on. The disk holds up the loop for the time of a sync; a thread of its own pays once a
        # directory has to take more than some hundred writes in a second.
        written = write(obj)
        key = key_of("claim", obj)
        while self._store.release_unused(key.namespace, key.name):
            pass
        if self._reconciler.is_missing(key):
            self._reconciler.reconcile(self._files.values())
        self._commit()
        return written


class _Watch:
    """Changes of one kind, read from the store's own history: a slow reader costs nothing but its own place in it."""

    def __init__(self, cluster: ManifestCluster, kind: Kind, resource_version: str) -> None:
        self._cluster = cluster
        self._kind = kind
        self._from = resource_version
        self._position = int(resource_version) if resource_version.isdecimal() else -1
        self._events: deque[StoreEvent] = deque()

    def __aiter__(self) -> "_Watch":
        return self

    async def __anext__(self) -> WatchEvent:
        await checkpoint()
        cluster = self._cluster
        while not self._events:
            cluster._check()
            changed = cluster._changed
            if self._position < 0:
                raise ExpiredError(f"no resource version of this cluster: {self._from}", kind=self._kind)
            self._events.extend(cluster._store.events_since(self._position, self._kind))
            self._position = cluster._store.resource_version
            if not self._events:
                await changed.wait()
        event = self._events.popleft()
        return WatchEvent(event.type, copy_of(event.object), str(event.resource_version), event.error)


async def _set_when_cancelled(event: anyio.Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        event.set()


def _digests(files: Mapping[str, Content] | Mapping[str, ManifestFile]) -> dict[str, str]:
    return {path: file.digest for path, file in files.items()}
