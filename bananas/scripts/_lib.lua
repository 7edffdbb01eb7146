-- Shared by every script: it is put in front of each file by scripts/__init__.py.
-- K names the fixed keys in the order in which scripts.Caller passes them; P is the common prefix, also the tag.
local K = {schedule = KEYS[1], leases = KEYS[2], dead = KEYS[3], done = KEYS[4], counters = KEYS[5], rev = KEYS[6],
  expiring = KEYS[7], callbacks = KEYS[8], calls = KEYS[9]}
local P = ARGV[1]

-- Stride scheduling within a pool: a lane's pass grows by SCALE / weight for each claim and the smallest pass goes next.
-- So between two claims of a lane of weight w, another one of weight x gets at most x / w of them, rounded up, however
-- busy it is: with the default weights low is served at least once in 1 + 16 + 4 = 21 claims of its pool.
local SCALE = 1008
local WEIGHTS = {high = 16, normal = 4, low = 1}
local ORDER = {'high', 'normal', 'low'}
local RANK = {high = 0, normal = 1, low = 2}
-- Most jobs of one lane that are called back out of parked:<function> and not taken yet.
local UNPARK = 1000

-- Unix time in ms by the server's clock, the only clock that decides anything.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return P .. 'job:' .. id end
local function lane_key(pool, prio) return P .. 'lane:' .. pool .. ':' .. prio end
local function parked_key(fn) return P .. 'parked:' .. fn end
local function called_key(fn) return P .. 'called:' .. fn end
local function running_key(fn) return P .. 'running:' .. fn end
local function busy_key(pool) return P .. 'busy:' .. pool end
local function listed_key(fn) return P .. 'jobs:' .. fn end
local function version_key(fn, ver) return P .. 'version:' .. fn .. '@' .. ver end

local function count(field, by) redis.call('HINCRBY', K.counters, field, by or 1) end

-- Wake one runner that is blocked on the pool. One member, so the bell can never grow.
local function ring(pool) redis.call('ZADD', P .. 'bell:' .. pool, 0, 'ring') end

-- A version that is not current any more ends by itself: not before `ms` from now, since a job needs it.
local function keep_version(fn, ver, ms)
  local ttl = redis.call('PTTL', version_key(fn, ver))
  if ttl >= 0 and ttl < ms then redis.call('PEXPIRE', version_key(fn, ver), ms) end
end

-- Put an id into its lane. A lane that was empty starts at the pool's virtual time, so that it cannot claim the
-- turns it did not need while it was empty.
local function lane_push(pool, prio, id, at_head)
  local n = redis.call(at_head and 'LPUSH' or 'RPUSH', lane_key(pool, prio), id)
  if n == 1 then
    local stride = P .. 'stride:' .. pool
    local s = redis.call('HMGET', stride, 'v', prio)
    local v = tonumber(s[1] or '0')
    if tonumber(s[2] or '0') < v then redis.call('HSET', stride, prio, v) end
  end
  ring(pool)
end

-- Schedule an id; a new earliest one rings, so that a sleeping runner learns of its new next due time.
local function schedule_push(pool, id, due)
  redis.call('ZADD', K.schedule, due, id)
  local head = redis.call('ZRANGE', K.schedule, 0, 0)
  if head[1] == id then ring(pool) end
end

-- The next due time (Unix ms) of the schedule, or -1.
local function next_due()
  local head = redis.call('ZRANGE', K.schedule, 0, 0, 'WITHSCORES')
  return head[2] and tonumber(head[2]) or -1
end

-- max_concurrency of a function, 0 when it has none.
local function limit_of(fn) return tonumber(redis.call('HGET', P .. 'fn:' .. fn, 'maxc') or '') or 0 end

-- Leases are kept in three places that only these two functions touch, so that they can't come apart: the deadlines,
-- and who runs by function and by pool, from which max_concurrency is derived.
local function lease_add(id, fn, pool, deadline)
  redis.call('ZADD', K.leases, deadline, id)
  redis.call('SADD', running_key(fn), id)
  redis.call('SADD', busy_key(pool), id)
end

-- True while the attempt is the job's. The runner counts too: a failover that forgets a claim gives its token again.
local function is_held(id, token, runner)
  local j = redis.call('HMGET', job_key(id), 'token', 'runner')
  return j[1] == token and j[2] == runner and redis.call('ZSCORE', K.leases, id)
end

-- True when the lease stood.
local function lease_drop(id, fn, pool)
  if redis.call('ZREM', K.leases, id) == 0 then return false end
  redis.call('SREM', running_key(fn), id)
  redis.call('SREM', busy_key(pool), id)
  return true
end

-- How parked:<function> and called:<function> name a job: both sort by this text alone, so the jobs of one lane lie
-- together, in the order of their numbers.
local function ticket(pool, prio, number, id)
  return pool .. ':' .. RANK[prio] .. ':' .. string.format('%016.0f', tonumber(number)) .. ':' .. id
end

-- Drop a record, and its place in the list of its function; a tombstone tells for a while that it was here.
local function bury(id, seconds)
  local fn = redis.call('HGET', job_key(id), 'fn')
  if fn then redis.call('ZREM', listed_key(fn), id) end
  redis.call('DEL', job_key(id))
  redis.call('SET', P .. 'tomb:' .. id, '', 'EX', seconds)
end

-- Set a job aside whose function is at its max_concurrency. It keeps the number of its first time, so that the jobs of
-- one lane stay in order however often they come back too early.
local function park(id, fn, pool, prio, number)
  local n = tonumber(number) or redis.call('INCR', P .. 'park:seq')
  redis.call('HSET', job_key(id), 'state', 'parked', 'pseq', n)
  redis.call('ZADD', parked_key(fn), 0, ticket(pool, prio, n, id))
end

-- Put a job that was called back into its lane: behind those of its function that were called before and have a smaller
-- number, else at the head.
local function call_back(fn, pool, prio, lane, name, id)
  redis.call('HSET', job_key(id), 'state', 'pending')
  local before = redis.call('ZREVRANGEBYLEX', called_key(fn), '(' .. name, '[' .. lane, 'LIMIT', 0, 1)
  local pivot = before[1] and string.match(before[1], '^[^:]+:%d:%d+:(.*)$')
  if pivot and redis.call('LINSERT', lane_key(pool, prio), 'AFTER', pivot, id) > 0 then
    ring(pool)
  else
    lane_push(pool, prio, id, true)
  end
end

-- Call jobs of one lane back, so that the first `room` of all that have a number are on their way. Returns how many.
local function unpark_lane(fn, lane, past, room)
  local key, called = parked_key(fn), called_key(fn)
  local names = redis.call('ZRANGEBYLEX', key, '[' .. lane, past, 'LIMIT', 0, room)
  if redis.call('EXISTS', called) == 1 then
    local n = 0
    while n < #names and n + redis.call('ZLEXCOUNT', called, '[' .. lane, '(' .. names[n + 1]) < room do n = n + 1 end
    for i = #names, n + 1, -1 do names[i] = nil end
  end
  local moved = {}
  for i = #names, 1, -1 do
    redis.call('ZREM', key, names[i])
    local id = string.match(names[i], '^[^:]+:%d:%d+:(.*)$')
    local j = redis.call('HMGET', job_key(id), 'state', 'pool', 'prio')
    if j[1] == 'parked' then
      call_back(fn, j[2], j[3], lane, names[i], id)
      moved[#moved + 1] = names[i]
    else
      count('orphans')
    end
  end
  for _, name in ipairs(moved) do redis.call('ZADD', called, 0, name) end
  return #moved
end

-- Bring jobs of a function back to the heads of their lanes, in each lane as many as the function has room for: the
-- lanes' strides then choose among them, no pool waits for another one, and who is too late is set aside again. To be
-- called whenever a job of the function stops running, or leaves its lane without running. Returns how many came back.
local function unpark(fn)
  local key = parked_key(fn)
  local first = redis.call('ZRANGE', key, 0, 0)
  if not first[1] then return 0 end
  local limit = limit_of(fn)
  local room = limit > 0 and math.min(UNPARK, limit - redis.call('SCARD', running_key(fn))) or UNPARK
  if room <= 0 then return 0 end
  local moved = 0
  while first[1] do
    local lane = string.match(first[1], '^[^:]+:%d:')
    local past = '(' .. string.sub(lane, 1, -2) .. ';' -- the character after ':'
    moved = moved + unpark_lane(fn, lane, past, room)
    first = redis.call('ZRANGEBYLEX', key, '[' .. string.sub(past, 2), '+', 'LIMIT', 0, 1)
  end
  return moved
end

-- Give jobs whose attempt ended without a result back to the heads of their lanes, in the order in which they had become
-- runnable. One whose function has a max_concurrency goes before all that wait for the same place. `jobs`: {id, fn,
-- pool, prio, enqueued}.
local function give_back(jobs)
  table.sort(jobs, function(a, b)
    if a.enqueued ~= b.enqueued then return a.enqueued > b.enqueued end
    return a.id > b.id
  end)
  for _, j in ipairs(jobs) do
    redis.call('HSET', job_key(j.id), 'state', 'pending')
    if limit_of(j.fn) > 0 then
      redis.call('HSET', job_key(j.id), 'pseq', 0)
      redis.call('ZADD', called_key(j.fn), 0, ticket(j.pool, j.prio, 0, j.id))
    end
    lane_push(j.pool, j.prio, j.id, true)
  end
end

-- After leases of a pool ended: one that is bounded by its own max_concurrency has told no bell while it was full.
local function ring_if_bounded(pool)
  if (tonumber(redis.call('HGET', P .. 'stride:' .. pool, 'maxc') or '') or 0) > 0 then ring(pool) end
end

-- Append one attempt (a JSON text that starts with {"token":N,) to the history; beyond `keep` lines the oldest goes,
-- with its logs.
local function remember(key, attempt, logs, keep)
  local hist = redis.call('HGET', key, 'hist')
  if hist and hist ~= '' then
    local _, lines = string.gsub(hist, '\n', '')
    if lines + 1 >= keep then
      local cut = string.find(hist, '\n', 1, true)
      local oldest = cut and string.sub(hist, 1, cut - 1) or hist
      local token = string.match(oldest, '"token":(%d+)')
      if token then redis.call('HDEL', key, 'log:' .. token) end
      hist = cut and string.sub(hist, cut + 1) or ''
    end
  end
  hist = (hist and hist ~= '') and (hist .. '\n' .. attempt) or attempt
  redis.call('HSET', key, 'hist', hist)
  if logs ~= '' then
    redis.call('HSET', key, 'log:' .. string.match(attempt, '"token":(%d+)'), logs)
  end
end

-- Tell every waiter that the job is over. `o`: id, state, attempt (JSON text), result, push_bytes, reply_list.
local function notify(key, o, waiters)
  if not waiters or waiters == '' then return end
  local small = #o.result <= o.push_bytes
  local message = o.id .. '\n' .. o.state .. '\n' .. o.attempt .. '\n' .. (small and ('r' .. o.result) or 'x')
  for list in string.gmatch(waiters, '[^\n]+') do
    redis.call('RPUSH', list, message)
    redis.call('LTRIM', list, -o.reply_list, -1)
    redis.call('PEXPIRE', list, 60000)
  end
  redis.call('HDEL', key, 'waiters')
end

-- Unique keys: unique:<function>:<key> holds id, version, state, pool and timeout of the first job, one on a line.
local UNIQUE_MS = 86400000
local function unique_value(id, ver, state, pool, timeout)
  return id .. '\n' .. ver .. '\n' .. state .. '\n' .. pool .. '\n' .. timeout
end

-- A finished job stands for its key until a day after it was created, and no longer.
local function unique_end(key, id, state)
  local j = redis.call('HMGET', key, 'fn', 'uniq', 'ver', 'pool', 'timeout', 'created')
  local ukey = P .. 'unique:' .. j[1] .. ':' .. j[2]
  local first = redis.call('GET', ukey)
  if first and string.sub(first, 1, #id + 1) == id .. '\n' then
    redis.call('SET', ukey, unique_value(id, j[3], state, j[4], j[5]))
    redis.call('PEXPIREAT', ukey, tonumber(j[6]) + UNIQUE_MS)
  end
end

-- A job that lives again stands for its key again, unless another one does by now.
local function unique_again(key, id, state)
  local j = redis.call('HMGET', key, 'fn', 'uniq', 'ver', 'pool', 'timeout')
  local ukey = P .. 'unique:' .. j[1] .. ':' .. j[2]
  local first = redis.call('GET', ukey)
  if not first or string.sub(first, 1, #id + 1) == id .. '\n' then
    redis.call('SET', ukey, unique_value(id, j[3], state, j[4], j[5]))
  end
end

-- A record ends by itself only when no janitor has dropped it this long (ms) after its time: who drops it must still
-- read whose job it was.
local UNSWEPT_MS = 60000

-- How long after its end (ms) a job may still be told to its callback_url. Its record stays at least as long, or until
-- that is done.
local CALLBACK_MS = 86400000

-- Have the end of a job told to its callback_url. The number of the end goes into the delivery's id: a replayed job has
-- another end, which takes the place of one that was not told yet.
local function tell_end(key, id, now)
  redis.call('HINCRBY', key, 'cbend', 1)
  redis.call('HSET', key, 'cbstate', 'pending', 'cbtries', 0, 'cberr', '')
  redis.call('ZADD', K.callbacks, now, id)
  redis.call('ZADD', P .. 'callbacks:bell', 0, 'ring')
end

-- How long the record of a failed synchronous call is kept, in ms: as long as its idempotency key stands.
local CALL_MS = 86400000

-- End a job that is in no lane, schedule or lease any more. `o` as for notify, plus now, reason, error, ttl (ms).
-- Failed jobs are dead letters, unless somebody waited for the answer and has it; completed and cancelled ones are done.
-- The record goes when its time is over.
local function finish(id, o)
  local key = job_key(id)
  redis.call('HSET', key, 'state', o.state, 'finished', o.now, 'reason', o.reason, 'result', o.result, 'error', o.error)
  local extra = redis.call('HMGET', key, 'waiters', 'uniq', 'cb', 'sync')
  local is_call = o.state == 'failed' and extra[4]
  local kept = is_call and CALL_MS or o.ttl
  if extra[3] then
    kept = math.max(kept, CALLBACK_MS)
    tell_end(key, id, o.now)
  end
  if is_call then
    redis.call('ZADD', K.calls, o.now, id)
  elseif o.state == 'failed' then
    redis.call('ZADD', K.dead, o.now, id)
    count('dead:' .. o.reason)
  else
    redis.call('ZADD', K.done, o.now + kept, id)
  end
  redis.call('PEXPIRE', key, kept + UNSWEPT_MS)
  o.id = id
  notify(key, o, extra[1])
  if extra[2] and extra[2] ~= '' then unique_end(key, id, o.state) end
end

-- Take a job that waits (pending, scheduled or parked) out of its place. `number`: its pseq, if it has one.
local function unqueue(id, state, fn, pool, prio, number)
  if state == 'scheduled' then
    redis.call('ZREM', K.schedule, id)
  elseif state == 'parked' then
    redis.call('ZREM', parked_key(fn), ticket(pool, prio, number, id))
  else
    redis.call('LREM', lane_key(pool, prio), 1, id)
    if number then redis.call('ZREM', called_key(fn), ticket(pool, prio, number, id)) end
  end
end

-- Fail a job that waited, out of its place already, because its time is over.
local function expire(id, o)
  o.state, o.reason, o.result, o.attempt = 'failed', 'expired', '', 'null'
  o.error = '{"type":"Expired","message":"the job waited longer than its expires_after"}'
  finish(id, o)
end

-- Jobs that wait where a new one of the function would: its pool's lanes, the schedule, set aside.
local function queued_in(pool, fn)
  local queued = redis.call('ZCARD', K.schedule) + redis.call('ZCARD', parked_key(fn))
  for _, p in ipairs(ORDER) do queued = queued + redis.call('LLEN', lane_key(pool, p)) end
  return queued
end
