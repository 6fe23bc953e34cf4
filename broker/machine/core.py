"""What the parts of the machine share: the world, the work that is left, and the batch that is being made."""

from collections import deque
from collections.abc import Iterable

from msgspec import structs

from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView, node_views
from broker.machine.effects import ALGORITHM, Effects, Identity, Notice, NoticeLevel
from broker.machine.observer import Observer
from broker.machine.queue import PendingQueue
from broker.machine.specs import Specs
from broker.world import fold
from broker.world.keys import ClaimKey, ClusterId, DeviceKey
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask, DeadLetter
from schemas.wire.codec import encode
from schemas.wire.ledger import AnyEntry, CheckpointEnds, EndCause, Inputs, Order, StateDigest, Step, entry_place
from schemas.wire.state import ObjectName
from schemas.wire.subjects import state_subject

MAX_BATCH = 1000  # messages in one of JetStream's atomic batches
ROOM_FOR_MESSAGE = 64  # entries that one message can cause at once, with a margin: 32 devices that are all broken
ENTRY_BYTES_MAX = 896 * 1024  # of any entry as JSON: a message may have a MiB, of which its headers need some thousand
SAID_BYTES_MAX = 128 * 1024  # of orders, epochs and syncs in one batch's inputs, beside which there are only positions
LETTER_PAYLOAD_MAX = 512 * 1024  # bytes kept of a message; in base64 that is as much as one message may have
LETTER_TEXT_MAX = 4_000
STEPS_WITHOUT_BATCH = 256  # then the position is recorded even though nothing happened, lest it expires


_NUMBER_BYTES = 24  # of a stream sequence, quotation marks and commas

# All that decides what a claim can get: cluster, spec as JSON, whether it may have admin access, devices to avoid.
Likeness = tuple[ClusterId, bytes, bool, tuple[str, ...]]


class Core:
    """The world and one batch in the making. `record` is the only way to change what the ledger says."""

    def __init__(self, world: World, index: DeviceIndex, identity: Identity, observer: Observer) -> None:
        self.world = world
        self.index = index
        self.specs = Specs(index)
        self.identity = identity
        self.observer = observer
        self.cause = 0  # what is recorded now follows from this message of DRA_STATE; see Effects
        self.now_ms = 0
        self.queue = PendingQueue()
        self.to_adopt: set[ClaimKey] = set()  # may have an allocation that no grant covers
        self.to_end: deque[tuple[ClaimKey, EndCause, int]] = deque()  # missing in a full sync; with the sync's sequence
        self.asking: set[Likeness] = set()  # see deciding: like these are claims that still have selectors to ask
        # Clusters whose claims took long, and the one latest served so with the highest number; see deciding.
        self.had_their_share: dict[ClusterId, int] = {}
        self.classes_changed = False  # members are to be told
        self.taints_told_at: tuple[int, bool] | None = None  # see projected_taints
        self.sync_to_count: tuple[ClusterId, int, int] | None = None  # finished; counts when `to_end` is done
        self.orders: list[Order] = []  # carried out in this step
        self.answers: list[str] = []  # to this step's commands: why not, or ""
        self.is_replaying = False  # a start: messages are taken in without their consequences
        self._node_views: dict[str, list[NodeView] | None] = {}
        self._steps: list[Step] = []
        self._epochs: dict[str, int] = {}
        self._epochs_from: dict[str, int] = {}
        self._synced: dict[str, int] = {}
        self._position_expired = False
        self._said_bytes = 0  # of what the batch's inputs have got besides positions, about
        self._applied = StateDigest()
        self._entries: list[AnyEntry] = []
        self._causes: list[int] = []
        self._dead_letters: list[DeadLetter] = []
        self._asks: list[tuple[str, Ask]] = []
        self._notices: list[Notice] = []

    @property
    def must_record(self) -> bool:
        """Something happened that no entry says yet."""
        return bool(self._epochs or self._synced or self._position_expired)

    @property
    def may_decide(self) -> bool:
        """All that clusters had said when this leader was elected is known."""
        return self.world.position >= self.world.decides_from

    def has_room(self, entries: int = ROOM_FOR_MESSAGE) -> bool:
        """Whether the batch can take `entries` more, and its inputs an order or a message."""
        fits = len(self._entries) + entries + 1 <= MAX_BATCH  # the last one may be the inputs
        return fits and self._said_bytes < SAID_BYTES_MAX

    def next_sequence(self) -> int:
        """The ledger sequence that the next recorded entry gets."""
        return self.world.ledger_last + 1 + len(self._entries) + self._follows_a_checkpoint

    def record(self, entry: AnyEntry) -> int:
        """Put an entry into the batch and into the world; returns its ledger sequence."""
        sequence = self.next_sequence()
        self._end_checkpoint()
        self._entries.append(entry)
        self._causes.append(self.cause)
        last = self.world.ledger_last
        fold.apply_entry(self.world, entry, sequence)
        self.world.ledger_last = last  # moves when the batch is closed
        return sequence

    @property
    def _follows_a_checkpoint(self) -> bool:
        """The next entry does, if nothing tells the checkpoint's end before it."""
        return not self._entries and self.world.ledger_last == self.world.checkpoint_last

    def _end_checkpoint(self) -> None:
        if self._follows_a_checkpoint:
            self._entries.append(CheckpointEnds())
            self._causes.append(0)

    def note_epoch(self, cluster: ClusterId, epoch: int, named_at: int = 0) -> None:
        """A new run of a cluster's agent is believed from here on.

        named_at: the message that told of it, where none was seen with which it began.
        """
        record = self.world.cluster(cluster)
        record.epoch, record.epoch_from = epoch, named_at
        self._epochs[cluster] = epoch
        self._epochs_from.pop(cluster, None)
        if named_at:
            self._epochs_from[cluster] = named_at
        self._said_bytes += len(cluster) + _NUMBER_BYTES

    def note_synced(self, cluster: ClusterId, stream_sequence: int) -> None:
        """A full sync of the cluster is finished."""
        self.world.cluster(cluster).synced_sequence = stream_sequence
        self._synced[cluster] = stream_sequence
        self._said_bytes += len(cluster) + _NUMBER_BYTES

    def note_order(self, order: Order) -> None:
        """An order is carried out in this step."""
        self.orders.append(order)
        self._said_bytes += len(encode(order))

    def note_applied(self, message: StoredMessage) -> None:
        """A message of DRA_STATE is applied in this step; the next batch has a digest of all of them."""
        self._applied.add(message)

    def note_position_expired(self) -> None:
        """The recorded position was lost; the next batch says so."""
        self._position_expired = True

    def dead_letter(self, message: StoredMessage, cluster: str, reason: str, text: str) -> None:
        """Keep a message aside with its reason; everything else goes on."""
        if self.is_replaying:
            return
        self._dead_letters.append(
            DeadLetter(
                cluster=cluster,
                subject=message.subject,
                stream_sequence=message.stream_sequence,
                reason=reason,
                message=text[:LETTER_TEXT_MAX],
                payload=message.payload[:LETTER_PAYLOAD_MAX],
            )
        )
        self.notice("warning", reason, f"{message.subject} at {message.stream_sequence}", text)

    def dead_letter_object(self, cluster: ClusterId, name: ObjectName, reason: str, text: str) -> None:
        """Keep aside the place of an object's last message, whose bytes are not at hand: DRA_STATE has them."""
        if self.is_replaying:
            return
        subject = state_subject(cluster, name.kind, name.key)
        sequence = self.world.cluster(cluster).known.get(name, 0)
        self._dead_letters.append(
            DeadLetter(cluster=cluster, subject=subject, stream_sequence=sequence, reason=reason, message=text)
        )
        self.notice("warning", reason, f"{subject} at {sequence}", text)

    def dead_letter_claim(self, key: ClaimKey, reason: str, text: str) -> None:
        """Keep a claim aside that could not be decided."""
        claim = self.world.claims[key]
        subject = f"claim {self.world.holder_name(key)}"
        self._dead_letters.append(
            DeadLetter(
                cluster=key.cluster,
                subject=subject,
                stream_sequence=claim.state_sequence,
                reason=reason,
                message=text[:LETTER_TEXT_MAX],
            )
        )
        self.notice("error", reason, subject, text)

    def ask(self, cluster: ClusterId, ask: Ask) -> None:
        """Ask a cluster's agent to publish again."""
        if self.is_replaying:
            return
        if not ask.objects:
            self.world.cluster(cluster).asked_at = max(self.world.position, 1)
        self._asks.append((cluster, ask))

    def notice(self, level: NoticeLevel, code: str, place: str, text: str) -> None:
        """Tell people."""
        if self.is_replaying:
            return
        self._notices.append(Notice(level, code, place, text[:LETTER_TEXT_MAX]))

    def changed(self, *topics: str) -> None:
        """Something changed that claims may wait for; see `queue` for the topics."""
        for topic in topics:
            if topic.startswith("nodes:"):
                self._node_views.pop(topic.removeprefix("nodes:"), None)
        self.queue.wake(topics)

    def node_views(self, cluster: ClusterId) -> list[NodeView] | None:
        """The nodes of a cluster by name; the same list until one of them changes. None where there are none."""
        if cluster not in self._node_views:
            nodes = self.world.nodes.get(cluster)
            self._node_views[cluster] = node_views(nodes) if nodes else None
        return self._node_views[cluster]

    def wake_devices(self, devices: Iterable[DeviceKey]) -> None:
        """Who has these devices changed."""
        self.changed(*{f"scope:{device.pool.scope}" for device in devices})

    def close_step(self) -> Effects:
        """The step is done: its orders, with the batch if there is something to record."""
        self.cause = 0
        self._steps.append(Step(self.world.position, self.now_ms, self.orders))
        first = self.world.ledger_last + 1
        effects = Effects([], first, self._dead_letters, self._asks, self._notices, self.answers)
        self._dead_letters, self._asks, self._notices, self.orders, self.answers = [], [], [], [], []
        is_full = len(self._steps) >= STEPS_WITHOUT_BATCH or self._said_bytes >= SAID_BYTES_MAX
        if not (self._entries or self.must_record or is_full):
            return effects
        inputs = Inputs(
            leader_epoch=self.world.leader_epoch,
            steps=self._steps,
            epochs=self._epochs,
            epochs_from=self._epochs_from,
            synced=self._synced,
            position_expired=self._position_expired,
            settings_digest=self.identity.settings_digest,
            build=self.identity.build,
            algorithm=ALGORITHM,
            state_digest=self._applied.take(),
        )
        self._end_checkpoint()
        effects.entries = _ended(self._entries, inputs)
        effects.causes = [*self._causes, *[0] * (len(effects.entries) - len(self._causes))]
        self.world.ledger_last += len(effects.entries)
        self._entries, self._causes, self._steps = [], [], []
        self._epochs, self._epochs_from, self._synced = {}, {}, {}
        self._position_expired, self._said_bytes = False, 0
        return effects


def fits(entry: AnyEntry) -> bool:
    """Whether the ledger takes the entry: one that is too long for a message ends every broker that makes it."""
    return len(encode(entry)) <= ENTRY_BYTES_MAX


def _ended(entries: list[AnyEntry], inputs: Inputs) -> list[AnyEntry]:
    """The batch with what it was decided from."""
    if entries and (inputs.is_plain or entry_place(entries[-1])[0] == "_"):
        return [*entries[:-1], structs.replace(entries[-1], inputs=inputs)]
    return [*entries, inputs]
