"""A pool: one engine, one model, a bounded queue with two priorities, and replicas with slots."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestratord.domain.breaker import Breaker
from orchestratord.domain.device import Device
from orchestratord.domain.eta import Prior, ServiceModel, Share, Work
from orchestratord.domain.kv import KvLayout
from orchestratord.domain.operation import Fault, Model, Operation
from orchestratord.domain.pins import Pins
from orchestratord.domain.queue import QueueSpec, TaskQueue
from orchestratord.domain.request import DEFAULT_PROFILE, Priority, TaskRequest, Workload
from orchestratord.domain.stay import Stay
from orchestratord.domain.task import Task

KV_BLOCK = 256  # tokens; engines with one cache for all keep whole blocks, of no more than so many
ReplicaState = Literal["unloaded", "loading", "ready", "retiring", "dead"]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What the configuration says of a pool."""

    id: str
    engine: str
    driver: str
    model_ref: str
    aliases: tuple[str, ...] = ()
    queue: QueueSpec = field(default_factory=QueueSpec)
    prior: Prior = field(default_factory=Prior)
    on_demand: bool = False  # loaded when somebody wants it, unloaded for others
    min_resident_s: float = 0.0
    idle_unload_s: float = 0.0  # 0: never by itself
    pins: Pins = field(default_factory=Pins)

    def serves(self, engine: str, model_ref: str) -> bool:
        return engine == self.engine and (model_ref == self.model_ref or model_ref in self.aliases)

    @property
    def profile(self) -> str:
        """The sampler profile of tasks that name none."""
        return self.pins.profile or DEFAULT_PROFILE

    def profile_of(self, request: TaskRequest) -> str:
        return request.sampler_profile_version or self.profile


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the last lease of a slot left in its KV cache. It holds no task: sessions outlive those."""

    pool_id: str
    replica: Replica
    incarnation: int
    slot: int
    lease_id: int
    tokens: int  # what the lease may have brought into the cache, at most
    mark: int  # the replica's `kv_mark` then

    @property
    def there(self) -> bool:
        """Whether it still is: the replica lives the same life, and nothing has taken its place since."""
        replica = self.replica
        if replica.state != "ready" or replica.incarnation != self.incarnation:
            return False
        if replica.kv_tokens is None:  # nobody had the slot since
            return replica.last_lease.get(self.slot) == self.lease_id
        return replica.kv_brought - self.mark + self.tokens <= replica.kv_tokens  # the longest unused goes first


@dataclass(slots=True, eq=False)
class Lease:
    """One slot of one replica, held by one task until the slot is known to be free again."""

    id: int
    task: Task
    pool: Pool
    replica: Replica
    incarnation: int
    slot: int  # index among the replica's slots
    exclusive: bool = False  # nothing else may run on the replica beside it
    quarantined: bool = False
    share: Share | None = None  # of the replica's work

    @property
    def tokens(self) -> int:
        """What it may bring into the engine's KV cache, at most."""
        return self.task.admitted.prompt_bound + self.task.request.max_tokens + KV_BLOCK

    @property
    def prefix(self) -> Prefix:
        replica = self.replica
        mark = replica.kv_mark if replica.kv_tokens is not None else 0  # else nobody asks for it
        return Prefix(self.pool.id, replica, self.incarnation, self.slot, self.id, self.tokens, mark)

    def let_go(self, busy: Collection[int]) -> bool:
        """Whether the engine works on it no more, by the slots that are busy.

        Only a completion is on the slot it was given; of the other workloads the number counts.
        """
        if self.task.request.workload == "completion":
            return self.slot not in busy
        return len(busy) < len(self.replica.leases)


@dataclass(slots=True, eq=False)
class Replica:
    """One engine server. `incarnation` counts its lives: a restart empties slots and KV cache."""

    id: str
    kind: Literal["external", "process"] = "external"
    device_mask: str | None = None
    state: ReplicaState = "loading"
    reason: str = "not started yet"
    slots: int = 0
    ctx: int = 0
    engine_version: str = ""
    model_id: str = ""
    model_digest: str | None = None
    workloads: frozenset[Workload] = frozenset()
    chat_template: bool = False
    features: tuple[str, ...] = ()
    quant: str | None = None
    exact_alone: bool = False  # equal seeds give equal tokens when one request runs at a time
    exact_warm: bool = False  # also when that reuses a prefix
    kv: KvLayout | None = None  # what tokens take in its KV cache, where that is known
    kv_tokens: int | None = None  # tokens its cache holds, of whoever came last; None: each slot keeps its last prompt
    kv_brought: int = 0  # tokens its leases may have brought there in this life, at most
    kv_due: int = 0  # those of them that the running ones have perhaps still to bring
    kv_usage: float | None = None  # share of its KV cache that jobs take; None: it does not say
    devices: tuple[Device, ...] = ()  # that it computes on, as far as they can be seen
    result_bytes: dict[Workload, int] = field(default_factory=dict)  # the longest frame of a result it gave
    incarnation: int = 0
    last_error: Fault | None = None
    leases: dict[int, Lease] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)
    reserved_for: Task | None = None  # a strict task that waits for it to be idle
    last_lease: dict[int, int] = field(default_factory=dict)  # slot -> id of the last lease on it
    idle: dict[int, None] = field(init=False)  # free slots, the one whose prompt is the longest unused first
    work: Work = field(default_factory=Work)  # of the leases

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """It begins a life with `slots` slots. What an engine's last life left in `leases` keeps its slots."""
        self.last_lease.clear()
        self.kv_brought = 0
        taken = {lease.slot for lease in self.leases.values()}
        self.idle = {slot: None for slot in range(self.slots) if slot not in taken}

    def pick_slot(self, prefer: int | None) -> int:
        """A free slot: the preferred one, else the one whose prompt is the longest unused."""
        return prefer if prefer in self.idle else next(iter(self.idle))

    def take(self, lease: Lease) -> None:
        """The lease has its slot from now on."""
        self.leases[lease.id] = lease
        del self.idle[lease.slot]
        self.last_lease[lease.slot] = lease.id
        self.kv_brought += lease.tokens
        self.kv_due += lease.tokens
        lease.share = self.work.add(lease.task.admitted.request)

    def give_back(self, lease: Lease) -> bool:
        """The lease's slot is free. False: it has been given back before."""
        if self.leases.pop(lease.id, None) is None:
            return False
        if lease.slot < self.slots:  # else the engine came back with fewer
            self.idle[lease.slot] = None
        self.kv_due -= lease.tokens
        assert lease.share is not None, "given back without having been taken"
        self.work.remove(lease.share)
        return True

    @property
    def kv_mark(self) -> int:
        """`kv_brought` without what running leases have yet to bring."""
        return self.kv_brought - self.kv_due

    def saw_result(self, workload: Workload, size: int) -> None:
        """One of its results became a frame of `size` bytes."""
        if size > self.result_bytes.get(workload, 0):
            self.result_bytes[workload] = size

    @property
    def vram_free(self) -> int:
        """Bytes on its devices; 0 where nothing is known of them."""
        return sum(device.free for device in self.devices)

    @property
    def available(self) -> bool:
        """Ready, and its breaker lets work through."""
        return self.state == "ready" and not self.breaker.open

    @property
    def free(self) -> int:
        leases = self.leases
        if not self.available or (len(leases) == 1 and next(iter(leases.values())).exclusive):  # it is always alone
            return 0
        return max(0, self.slots - len(leases))

    @property
    def reserved(self) -> Task | None:
        """The strict task this replica is kept for, while it still waits."""
        task = self.reserved_for
        return task if task is not None and task.waits else None

    def exact(self, job: TaskRequest) -> bool:
        """Equal seeds give equal tokens: no other request can share a batch with this one, and no prefix is reused
        (what was computed in batches of another size differs in the last bits)."""
        cold = job.cold or self.exact_warm or "prefix_cache" not in self.features
        return self.exact_alone and cold and (self.slots == 1 or job.determinism == "strict")

    @property
    def strict(self) -> bool:
        """Can give the strict guarantee to a task that has it alone."""
        return self.exact_alone


@dataclass(slots=True, eq=False)
class Pool:
    """A pool and everything in it."""

    spec: PoolSpec
    id: str = field(init=False)
    replicas: dict[str, Replica] = field(default_factory=dict)
    shadows: list[Replica] = field(default_factory=list)  # of a reload: those coming up, and those running out
    queue: TaskQueue = field(init=False)
    service: ServiceModel = field(init=False)
    draining: bool = False
    model: Model | None = None  # what a reload has put in place of the configured one
    configured: str = field(init=False)
    generation: int = 1  # counts the models it has come to serve
    operation: Operation | None = None  # the last one, running or over
    opens_at: float | None = None  # monotonic seconds at which a closed pool is expected to take work again
    last_error: Fault | None = None
    on_release: list[Callable[[], object]] = field(default_factory=list)  # called when a slot is no longer worked on
    stay: Stay = field(init=False)
    near: dict[Priority, Any] = field(default_factory=dict)  # what forecasts found at the front of the queue

    def __post_init__(self) -> None:
        self.id = self.spec.id
        self.stay = Stay(self.spec.prior.load_ms / 1000)
        self.configured = self.spec.model_ref
        self.queue = TaskQueue(self.spec.queue)
        self.service = ServiceModel(self.spec.prior)

    @property
    def live(self) -> bool:
        return any(r.state != "dead" for r in self.replicas.values())

    @property
    def ready(self) -> bool:
        return not self.draining and (self.dormant or any(r.available for r in self.replicas.values()))

    @property
    def dormant(self) -> bool:
        """Not in memory, or not yet, but it will be for whoever wants it."""
        return self.spec.on_demand and self.stay.phase != "in" and not self.stay.shut

    @property
    def takes_work(self) -> bool:
        """Whether its queue is worked on."""
        there = not self.spec.on_demand or self.stay.phase in ("coming", "in")
        return there and not self.draining and not self.stay.yielding

    @property
    def ready_replicas(self) -> list[Replica]:
        return [r for r in self.replicas.values() if r.state == "ready"]

    @property
    def known_replicas(self) -> list[Replica]:
        """The ready ones; of a pool that is not loaded, those of whom an earlier life is known."""
        return [r for r in self.replicas.values() if r.ctx] if self.dormant else self.ready_replicas

    @property
    def slots(self) -> int:
        total = 0
        for replica in self.replicas.values():
            if replica.state == "ready":
                total += replica.slots
        return total

    @property
    def slots_when_loaded(self) -> int:
        """Of an on-demand pool that is not, those it had when it last was."""
        slots = self.slots
        if slots or not self.spec.on_demand:
            return slots
        return sum(r.slots for r in self.replicas.values())

    @property
    def leases(self) -> list[Lease]:
        """Of every engine of the pool, also of those that only finish what they have."""
        return [lease for r in (*self.replicas.values(), *self.shadows) for lease in r.leases.values()]

    @property
    def leased(self) -> int:
        """How many there are."""
        return sum([len(r.leases) for r in (*self.replicas.values(), *self.shadows)])

    @property
    def at_work(self) -> list[Lease]:
        """Leases whose engine is still working, as far as can be known."""
        return [lease for lease in self.leases if not lease.quarantined]

    @property
    def engine_version(self) -> str:
        return next((r.engine_version for r in self.replicas.values() if r.engine_version), "unknown")
