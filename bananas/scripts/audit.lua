-- Look at some records and put right what should not exist: a live job that is in no place or in a wrong one, a record
-- without its job, a place in running:/busy: without a lease. Nothing here is ever needed as long as only these scripts
-- write; it heals what a restored backup, a half-lost data set or a hand has broken, and counts what it did.
-- The one thing that is needed, and is no repair: a version that a live job needs does not end, however late the job runs.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 1: look at running:<function>, called:<function> and busy:<pool> too, 3 ms that an old version is
--          kept for, then ids of jobs
-- derived  job:<id>, lane:<pool>:<priority>, parked:<function>, called:<function>, running:<function>, busy:<pool>,
--          version:<function>@<version>, jobs:<function>, functions, pools
-- returns  {kind, how many, ...} of what was repaired
-- use: _lanes _parked _tell
local LONG_LANE = 1000
local now, keep_ms = now_ms(), tonumber(ARGV[3])
local repaired = {}
local function note(kind)
  repaired[kind] = (repaired[kind] or 0) + 1
  count('repaired:' .. kind)
end

-- A list is only searched when it is short, or when the job should have been served before the lane's head.
local function is_missing_from_lane(lane, id, enqueued)
  local n = redis.call('LLEN', lane)
  if n > LONG_LANE then
    local head = redis.call('HGET', job_key(redis.call('LINDEX', lane, 0)), 'enqueued')
    if not head or tonumber(head) <= tonumber(enqueued) then return false end
  end
  return n == 0 or not redis.call('LPOS', lane, id)
end

local function requeue(id, pool, prio, kind)
  redis.call('HSET', job_key(id), 'state', 'pending')
  lane_push(pool, prio, id)
  note(kind)
end

-- Members of a derived set whose lease is gone would count against max_concurrency for ever.
local function clean(set)
  local gone = 0
  for _, id in ipairs(redis.call('SMEMBERS', set)) do
    if not redis.call('ZSCORE', LEASES, id) then
      redis.call('SREM', set, id)
      note('running')
      gone = gone + 1
    end
  end
  return gone
end

-- So would jobs that were called back and are no longer on their way.
local function clean_called(fn)
  for _, name in ipairs(redis.call('ZRANGE', called_key(fn), 0, -1)) do
    local id = string.match(name, '^[^:]+:%d:%d+:(.*)$')
    local j = redis.call('HMGET', job_key(id or ''), 'state', 'pool', 'prio', 'pseq')
    if j[1] ~= 'pending' or not j[4] or ticket(j[2], j[3], j[4], id) ~= name then
      redis.call('ZREM', called_key(fn), name)
      note('called')
    end
  end
end

local unparked = {}
local function look(id)
  local key = job_key(id)
  local j = redis.call('HMGET', key, 'state', 'fn', 'pool', 'prio', 'due', 'enqueued', 'ttl', 'finished', 'pseq',
    'ver', 'created', 'cbstate', 'sync', 'cb')
  local state, fn, pool, prio = j[1], j[2], j[3], j[4]
  if not (state and fn and pool and prio and j[6] and j[7]) then
    if redis.call('DEL', key) == 1 then note('fragment') end
    return
  end
  local ended = state == 'completed' or state == 'cancelled' or state == 'failed'
  if ended then
    local finished = tonumber(j[8] or '') or now
    local home = j[13] and CALLS or DEAD
    if state == 'failed' and not redis.call('ZSCORE', home, id) then
      redis.call('ZADD', home, finished, id)
      note('dead')
    elseif state ~= 'failed' and not redis.call('ZSCORE', DONE, id) then
      redis.call('ZADD', DONE, finished + tonumber(j[7]), id)
      note('done')
    end
    if j[12] == 'pending' and redis.call('ZADD', CALLBACKS, 'NX', now, id) == 1 then note('callback') end
    -- Its end was settled by a release that knows no callbacks, during an upgrade.
    if j[14] and not j[12] then
      tell_end(key, id, now)
      note('callback')
    end
  elseif redis.call('ZREM', DEAD, id) + redis.call('ZREM', CALLS, id) + redis.call('ZREM', DONE, id) > 0 then
    note('stray')
  end
  if j[11] and redis.call('ZADD', listed_key(fn), 'NX', j[11], id) == 1 then note('listed') end
  if not ended and j[10] then keep_version(fn, j[10], keep_ms) end
  if state == 'processing' then
    if not redis.call('ZSCORE', LEASES, id) then
      requeue(id, pool, prio, 'lease')
    elseif redis.call('SADD', running_key(fn), id) + redis.call('SADD', busy_key(pool), id) > 0 then
      note('running')
    end
  elseif lease_drop(id, fn, pool) then
    note('stray')
  end
  if state == 'scheduled' and not redis.call('ZSCORE', SCHEDULE, id) then
    schedule_push(pool, id, tonumber(j[5] or '') or now)
    note('schedule')
  elseif state ~= 'scheduled' and redis.call('ZREM', SCHEDULE, id) == 1 then
    note('stray')
  end
  if state == 'parked' then
    if not j[9] or not redis.call('ZSCORE', parked_key(fn), ticket(pool, prio, j[9], id)) then
      redis.call('HDEL', key, 'pseq')
      requeue(id, pool, prio, 'parked')
    elseif not unparked[fn] then
      unparked[fn] = true
      unpark(fn)
    end
  elseif state == 'pending' and is_missing_from_lane(lane_key(pool, prio), id, j[6]) then
    requeue(id, pool, prio, 'lane')
  end
end

if ARGV[2] == '1' then
  for _, fn in ipairs(redis.call('SMEMBERS', P .. 'functions')) do
    clean(running_key(fn))
    clean_called(fn)
    unpark(fn)
  end
  local pools = redis.call('HKEYS', P .. 'pools')
  pools[#pools + 1] = 'default'
  for _, pool in ipairs(pools) do
    if clean(busy_key(pool)) > 0 then ring_if_bounded(pool) end
  end
end
for i = 4, #ARGV do look(ARGV[i]) end

local out = {}
for kind, n in pairs(repaired) do
  out[#out + 1] = kind
  out[#out + 1] = n
end
return out
