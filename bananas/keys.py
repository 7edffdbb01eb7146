"""Every key in Redis: its name, type, members and lifetime. Nothing else builds a key in Python.

All keys share the hash tag ``{bananas}``, so that one script may touch any of them on a cluster-enabled server.
The price: one namespace lives in one slot, so a cluster gives high availability and not more speed.
Scripts take the fixed keys in KEYS and derive a job's, lane's or function's key from ``PREFIX`` and an id.

| key (after the tag) | type | holds | lifetime |
|---|---|---|---|
| ``job:<id>`` | HASH | one job, see below | while live; then its result TTL, up to 60 s more until it is swept |
| ``lane:<pool>:<priority>`` | LIST | ids ready to run, oldest first | empties itself |
| ``stride:<pool>`` | HASH | ``v`` virtual time, pass and weight (``w:…``) of each lane, ``maxc`` | for ever |
| ``bell:<pool>`` | ZSET | one member while somebody should look at the pool | empties itself |
| ``schedule`` | ZSET | id → due (Unix ms): delayed jobs and retries | empties itself |
| ``leases`` | ZSET | id → lease deadline (Unix ms) | empties itself |
| ``running:<function>`` · ``busy:<pool>`` | SET | ids with a lease, for ``max_concurrency`` | empties itself |
| ``parked:<function>`` | ZSET | jobs that wait for their function's ``max_concurrency``, see below | empties itself |
| ``called:<function>`` | ZSET | those of them that are back in their lanes and not claimed yet | empties itself |
| ``park:seq`` | STRING | numbers the parked | for ever |
| ``expiring`` | ZSET | id → by when (Unix ms) its first attempt must have begun | empties itself |
| ``callbacks`` | ZSET | id → when its end is told (Unix ms), or the lease of who tells it | at most a day |
| ``callbacks:bell`` | ZSET | one member while somebody should look at them | empties itself |
| ``rate:token:<id>`` · ``rate:function:<function>`` | STRING | when its bucket is full (Unix ms) | until then |
| ``unique:<function>:<key>`` | STRING | the first job with that unique key | the job's life, at least 24 h |
| ``schedules`` | SET | functions with a schedule | |
| ``cron:<function>`` | HASH | its schedule, see below | until removed |
| ``held:<function>`` | LIST | slots (Unix ms) that wait until the job of the one before is over | empties itself |
| ``dead`` | ZSET | id → time of death (Unix ms) | 14 days, at most 100,000 |
| ``calls`` | ZSET | id → time of failure (Unix ms) of synchronous calls | a day, at most 10,000 |
| ``done`` | ZSET | id → time its record ends (Unix ms): completed and cancelled | with the record |
| ``jobs:<function>`` | ZSET | id → created (Unix ms), every record of the function, for lists | with the record |
| ``unlisted`` | SET | removed functions whose jobs are still listed | until they are gone |
| ``tomb:<id>`` | STRING | a record was here | 24 h |
| ``reply:<process>`` | LIST | final records for one gateway process | 60 s after the last push |
| ``wake:<runner>`` | ZSET | pools whose bell this runner is not to wait for any longer | 10 s |
| ``inbox:<runner>`` | LIST | ``cancel``/``follow <id> <token>``, ``pools``, ``deployed <name>`` | 60 s after a push |
| ``tail:<id>`` | STREAM | what a followed job prints: token, offset, data; at most 500 | 60 s after the last |
| ``counters`` | HASH | what /metrics sums up, see below | for ever; by function: until its jobs are gone |
| ``traffic`` | HASH | requests to gateways, see below | for ever |
| ``fn:<name>`` | HASH | the current version and what enqueue stamps on a job | until removed |
| ``functions`` | SET | names | |
| ``version:<name>@<version>`` | STRING | one immutable version (JSON) | of the last 20 or of a live job; then 7 days |
| ``versions:<name>`` | ZSET | its last 20 versions → deployed (Unix ms) | until removed |
| ``bundle:<sha256>`` | STRING | an archive | 1 h after upload; once deployed as long as a version needs it |
| ``pools`` | HASH | name → pool spec (JSON) | |
| ``pools:rev`` | STRING | counts changes of ``pools`` and ``secrets`` | |
| ``secrets`` | HASH | name → version, time and sealed value (MessagePack), see ``bananas.secrets`` | until removed |
| ``tokens`` | HASH | id → API token (JSON, with a digest of its secret), see ``bananas.tokens`` | until removed |
| ``runtimes`` | HASH | name → RuntimeInfo (JSON) | last published |
| ``runners`` | HASH | id → RunnerInfo (JSON) | swept when not seen for 60 s |
| ``instance`` | STRING | id of this installation | for ever |
| ``format`` | STRING | number of the layout of all this, see ``bananas.storage`` | for ever |

A job's fields: ``fn ver pool prio state payload created enqueued due timeout maxr retry ttl expires token failures
losses starts runner claimed finished reason result error hist waiters uniq pseq progress trace fresh`` (the last
two only when given) and ``log:<token>`` per attempt that printed. ``state`` is one of the API's or ``parked``, which
the API calls pending; ``pseq`` is its number there; ``fresh`` is its last token, if nothing began at that claim nor at
any before; ``rkey`` is the idempotency key of its last replay. Members of
``parked:`` and ``called:`` are ``<pool>:<rank of the priority>:<pseq>:<id>`` and sort by that text.
With a callback: ``cb`` its URL, ``cbend`` counts the job's ends, ``cbstate`` (pending, delivered, failed), ``cbtries``
and ``cberr``, the last try's error. ``sync`` is 1 for a synchronous call.
Times are Unix ms of Redis; ``timeout`` and ``ttl`` are ms; ``retry`` is a RetrySpec as JSON; ``hist`` is one JSON
text per line; ``waiters`` is one reply list per line.

A schedule's fields: ``rev`` (digest of all that a deploy says of it) ``cron tz catchup overlap payload`` ``paused`` (1
or 0) ``last`` (nothing up to here is due any more; only ever later) ``slot`` (decided last) ``job`` (made last). Its
jobs have the unique key ``cron:<function>@<slot>``.

Counter fields: ``outcome:<function>:<outcome>`` attempts by outcome · ``retries`` · ``dead:<reason>`` ·
``enqueued:<function>`` · ``cancelled`` · ``ms:<function>:<bucket>`` runs by duration bucket (upper bound in ms or
``inf``) · ``ms_sum:<function>`` their sum in ms · ``trimmed`` dead letters dropped over the cap · ``replayed``
``purged`` dead letters · ``lost`` leases that ran out · ``<phase>:<pool>:<bucket>`` attempts by duration bucket and
``<phase>_us:<pool>`` their sum in µs, for the phases ``queued wait_sandbox init run total`` ·
``orphans`` ids without a record, met by a claim, a promotion or the reaper ·
``repaired:<kind>`` what the janitor's audit put right · ``start:<pool>:<function>:<start>:<reason>`` and
``end:<pool>:<function>:<reason>`` sandboxes that came and went, words as in ``runner/reasons.py`` ·
``egress:<pool>:<verdict>`` connections out of sandboxes · ``egress_bytes:<pool>:<direction>`` ·
``cron_fired:<function>`` ``cron_skipped:<function>`` ``cron_missed:<function>`` slots of its schedule ·
``cron_lag:<function>`` ms, how late the last one fired · ``refused:<function>:<reason>`` jobs that were not taken
(``queue_full``, ``callbacks_full``, ``token_rate``, ``function_rate``) · ``callback:<function>:<verdict>`` tries to
tell an end (``delivered``, ``again``, ``failed`` for good) · ``callbacks_lost`` ends whose record went before.
In ``traffic``: ``http:<call>:<status>`` answered requests · ``took:<call>:<bucket>`` ``took_us:<call>`` how long they
took · ``event:<event>`` lines that were logged at warning and above.
"""

from __future__ import annotations

from typing import Final

from bananas.spec import Priority

PREFIX: Final = "{bananas}:"

SCHEDULE: Final = PREFIX + "schedule"
LEASES: Final = PREFIX + "leases"
DEAD: Final = PREFIX + "dead"
DONE: Final = PREFIX + "done"
COUNTERS: Final = PREFIX + "counters"
TRAFFIC: Final = PREFIX + "traffic"
FUNCTIONS: Final = PREFIX + "functions"
POOLS: Final = PREFIX + "pools"
POOLS_REV: Final = PREFIX + "pools:rev"
SECRETS: Final = PREFIX + "secrets"
TOKENS: Final = PREFIX + "tokens"
RUNTIMES: Final = PREFIX + "runtimes"
RUNNERS: Final = PREFIX + "runners"
INSTANCE: Final = PREFIX + "instance"
FORMAT: Final = PREFIX + "format"
EXPIRING: Final = PREFIX + "expiring"
SCHEDULES: Final = PREFIX + "schedules"
UNLISTED: Final = PREFIX + "unlisted"
CALLS: Final = PREFIX + "calls"
CALLBACKS: Final = PREFIX + "callbacks"
CALLBACKS_BELL: Final = PREFIX + "callbacks:bell"

#: Upper bounds in ms of the duration histogram, as in the counter fields.
DURATION_BUCKETS_MS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)


def job(job_id: str) -> str:
    """HASH of one job."""
    return f"{PREFIX}job:{job_id}"


def tomb(job_id: str) -> str:
    """STRING that remembers an expired record."""
    return f"{PREFIX}tomb:{job_id}"


def jobs(function: str) -> str:
    """ZSET of a function's records by their creation."""
    return f"{PREFIX}jobs:{function}"


def lane(pool: str, priority: Priority) -> str:
    """LIST of ready ids."""
    return f"{PREFIX}lane:{pool}:{priority}"


def stride(pool: str) -> str:
    """HASH of a pool's lanes: passes, weights, limit."""
    return f"{PREFIX}stride:{pool}"


def parked(function: str) -> str:
    """ZSET of jobs that wait for their function's max_concurrency."""
    return f"{PREFIX}parked:{function}"


def called(function: str) -> str:
    """ZSET of those of them that are back in their lanes."""
    return f"{PREFIX}called:{function}"


def running(function: str) -> str:
    """SET of a function's leased ids."""
    return f"{PREFIX}running:{function}"


def busy(pool: str) -> str:
    """SET of a pool's leased ids."""
    return f"{PREFIX}busy:{pool}"


def unique(function: str, key: str) -> str:
    """STRING that names the first job with a unique key."""
    return f"{PREFIX}unique:{function}:{key}"


def cron(function: str) -> str:
    """HASH of a function's schedule."""
    return f"{PREFIX}cron:{function}"


def held(function: str) -> str:
    """LIST of slots that wait for the job of the one before."""
    return f"{PREFIX}held:{function}"


def bell(pool: str) -> str:
    """ZSET that idle runners block on."""
    return f"{PREFIX}bell:{pool}"


def reply(process: str) -> str:
    """LIST of one gateway process."""
    return f"{PREFIX}reply:{process}"


def tail(job_id: str) -> str:
    """STREAM of what a followed job prints."""
    return f"{PREFIX}tail:{job_id}"


def wake(runner: str) -> str:
    """ZSET of one runner."""
    return f"{PREFIX}wake:{runner}"


def inbox(runner: str) -> str:
    """LIST of one runner."""
    return f"{PREFIX}inbox:{runner}"


def function(name: str) -> str:
    """HASH of a function's current version."""
    return f"{PREFIX}fn:{name}"


def version(name: str, version_id: str) -> str:
    """STRING of one version."""
    return f"{PREFIX}version:{name}@{version_id}"


def versions(name: str) -> str:
    """ZSET of a function's kept versions by the time of their deploy."""
    return f"{PREFIX}versions:{name}"


def bundle(sha256: str) -> str:
    """STRING of one archive."""
    return f"{PREFIX}bundle:{sha256}"
