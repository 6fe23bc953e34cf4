"""Where a ledger is read from: NATS, or files that `dragoman ledger archive` wrote."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from broker.adapters.ledger_archive import Archive
from broker.adapters.streams import ledger_segments
from broker.cli.errors import CommandError
from broker.cli.ledger_bus import SHARD, entries_of
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import ledger_stream


class LedgerAtNats:
    """The streams that there are."""

    shard = SHARD

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def segments(self) -> list[int]:
        """Raises: CommandError if there is no ledger; BusError."""
        segments = await ledger_segments(self._connection, SHARD)
        if not segments:
            text = (
                "there is no ledger here: none was ever begun, or it was lost (docs/reliability.md, Ledger stream lost)"
            )
            raise CommandError(text, exit_code=1)
        return segments

    async def first(self, segment: int) -> StoredMessage | None:
        """Raises: BusError."""
        reader = StreamReader(self._connection, ledger_stream(SHARD, segment))
        return await reader.at((await reader.state()).first_sequence)

    def entries(self, segment: int) -> AsyncGenerator[list[StoredMessage], None]:
        """Raises: BusError."""
        return entries_of(self._connection, ledger_stream(SHARD, segment))


class LedgerInFiles:
    """Archived segments."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises: CommandError if they do not go together; ArchiveError."""
        archives = [Archive(path) for path in paths]
        self._paths = {each.header.segment: each.path for each in archives}
        shards = {each.header.shard for each in archives}
        if len(shards) > 1 or len(self._paths) < len(archives):
            raise CommandError("the files are of several ledgers, or a segment is given twice")
        self.shard = shards.pop()

    async def segments(self) -> list[int]:
        """Those of which there are files."""
        return sorted(self._paths)

    async def first(self, segment: int) -> StoredMessage | None:
        """Raises: ArchiveError."""
        batch = next(Archive(self._paths[segment]).batches(), [])
        return batch[0] if batch else None

    async def entries(self, segment: int) -> AsyncGenerator[list[StoredMessage], None]:
        """Raises: ArchiveError."""
        for batch in Archive(self._paths[segment]).batches():
            yield batch
