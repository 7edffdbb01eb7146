-- One round trip of a runner: settle the attempts that ended, then claim up to the free slots of each pool.
--
-- Settling needs the job's own token, a standing lease and the runner that holds it (a token can be given twice when a
-- failover forgets a claim); anything else changes nothing and answers 0. A claim
-- raises the token, which nothing ever lowers. Each id stays in exactly one of lane, schedule, parked, leases, dead, done.
-- A claim takes from the lanes by stride (see _lib.lua) and never more than the free slots, the pool's max_concurrency
-- over all runners, or a function's own: what a full function owns is set aside in parked:<function>.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 runner, 3 lease ms, 4 push bytes, 5 reply list length, 6 history lines, 7 dead letter ttl ms,
--          8 number of settlements, 9 number of pools; then 13 values per settlement: id, token,
--          action (complete|retry|dead|back), delay ms, outcome, reason (of dead; of back: fresh = nothing of it began, or
--          ''), result, error (JSON), attempt (JSON), logs,
--          duration bucket ('' = none), run ms (to the µs), progress (JSON or ''); then 2 values per pool: name, free slots (0 =
--          only ring again)
-- derived  job:<id>, lane:<pool>:<priority>, stride:<pool>, bell:<pool>, parked:<function>, running:<function>,
--          called:<function>, busy:<pool>, fn:<function> (read), unique:<function>:<key>, reply lists named in job:<id> waiters
-- returns  {now, next due or -1, revision of the pools, {1|0 per settlement}, {claim...}}; a claim is {id, token,
--          function, version, pool, priority, payload, timeout ms, retry (JSON), failures, starts, enqueued, ttl, maxr,
--          traceparent if it has one}
local runner, lease_ms = ARGV[2], tonumber(ARGV[3])
local push_bytes, reply_list, keep, dead_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local settlements, pools = tonumber(ARGV[8]), tonumber(ARGV[9])
local now = now_ms()
local at = 10

local settled, claims, places = {}, {}, {}
-- Functions that got room, each once, in the order of the settlements.
local freed = {}
local function free_up(fn)
  if not freed[fn] then
    freed[fn] = true
    freed[#freed + 1] = fn
  end
end

local function settle_all()
  -- use: _parked _end
  local backs, pools_freed = {}, {}

  local function over(id, state, reason, result, err, attempt, ttl, fields, who)
    finish(id, {now = now, state = state, reason = reason, result = result, error = err, attempt = attempt, ttl = ttl,
      push_bytes = push_bytes, reply_list = reply_list}, fields, who)
  end

  local function settle(id, token, action, delay, outcome, reason, result, err, attempt, logs, bucket, run_ms, progress)
    local key = job_key(id)
    local j = redis.call('HMGET', key, 'token', 'fn', 'pool', 'prio', 'ttl', 'enqueued', 'runner', 'hist', 'waiters',
      'uniq', 'cb', 'sync')
    if j[1] ~= token or j[7] ~= runner or not lease_drop(id, j[2], j[3]) then return 0 end
    free_up(j[2])
    pools_freed[j[3]] = true
    local fields, who = remember(key, j[8], attempt, logs, keep), {j[9], j[10], j[11], j[12]}
    if progress ~= '' then
      fields[#fields + 1] = 'progress'
      fields[#fields + 1] = progress
    end
    count('outcome:' .. j[2] .. ':' .. outcome)
    if bucket ~= '' then
      count('ms:' .. j[2] .. ':' .. bucket)
      count_ms('ms_sum:' .. j[2], run_ms)
    end
    if action == 'complete' then
      over(id, 'completed', '', result, '', attempt, tonumber(j[5]), fields, who)
    elseif action == 'dead' then
      if outcome ~= 'start' then redis.call('HINCRBY', key, 'failures', 1) end
      over(id, 'failed', reason, '', err, attempt, dead_ttl, fields, who)
    elseif action == 'retry' then
      local due = now + tonumber(delay)
      redis.call('HINCRBY', key, outcome == 'start' and 'starts' or 'failures', 1)
      redis.call('HSET', key, 'state', 'scheduled', 'due', due, 'enqueued', due, 'error', err, unpack(fields))
      -- use: _lanes
      schedule_push(j[3], id, due)
      count('retries')
    else -- back: as if it had never been claimed, but for the token and the count that bounds what is free of charge
      redis.call('HSET', key, unpack(fields))
      if outcome == 'displaced' then redis.call('HINCRBY', key, 'starts', 1) end
      if reason == 'fresh' then
        -- A job of which nothing began at any claim so far may still expire. `fresh` is its last such claim.
        local f = redis.call('HMGET', key, 'expires', 'fresh')
        if f[1] ~= '0' and tonumber(f[2] or '0') == tonumber(token) - 1 then
          redis.call('HSET', key, 'fresh', token)
          redis.call('ZADD', EXPIRING, f[1], id)
        end
      end
      backs[#backs + 1] = {id = id, fn = j[2], pool = j[3], prio = j[4], enqueued = tonumber(j[6])}
    end
    return 1
  end

  if settlements > 1 then begin_many() end
  for i = 1, settlements do
    local a = ARGV
    settled[i] = settle(a[at], a[at + 1], a[at + 2], a[at + 3], a[at + 4], a[at + 5], a[at + 6], a[at + 7], a[at + 8],
      a[at + 9], a[at + 10], a[at + 11], a[at + 12])
    at = at + 13
  end
  give_back(backs)
  for _, fn in ipairs(freed) do unpark(fn) end
  freed = {}
  for pool in pairs(pools_freed) do ring_if_bounded(pool) end
end

-- What the latest claim took out of a lane, the lane's priority, and how many of these it has looked at.
local popped, popped_from, looked_at

local function claim(pool, free)
  local stride = P .. 'stride:' .. pool
  local left, waiting = {}, 0
  for _, prio in ipairs(ORDER) do
    left[prio] = redis.call('LLEN', lane_key(pool, prio))
    waiting = waiting + left[prio]
  end
  if waiting == 0 then return end

  -- Places that a function has left under its max_concurrency: read once in a step, then kept up to date here.
  local function places_of(fn)
    if not places[fn] then
      local limit = limit_of(fn)
      places[fn] = limit > 0 and limit - leases_in(running_key(fn)) or math.huge
    end
    return places[fn]
  end

  -- Take one id: nil when its record is gone, it has expired or its function is full (it is then out of its lane).
  local function take(pool, prio, id)
    local key = job_key(id)
    local j = redis.call('HMGET', key, 'fn', 'ver', 'payload', 'timeout', 'retry', 'failures', 'starts', 'enqueued',
      'ttl', 'maxr', 'expires', 'token', 'state', 'pseq', 'progress', 'trace', 'fresh')
    local fn = j[1]
    if not fn or j[13] ~= 'pending' then
      count('orphans')
      return nil
    end
    local may_expire = (j[11] or '0') ~= '0' and j[12] == (j[17] or '0')
    local is_expired = may_expire and tonumber(j[11]) <= now
    if j[14] or is_expired or places_of(fn) <= 0 then
      -- use: _lanes _parked _end
      if j[14] then redis.call('ZREM', called_key(fn), ticket(pool, prio, j[14], id)) end
      if is_expired then
        put('ZREM', EXPIRING, id)
        expire(id, {now = now, ttl = dead_ttl, push_bytes = push_bytes, reply_list = reply_list})
        free_up(fn)
        return nil
      end
      if places_of(fn) <= 0 then
        park(id, fn, pool, prio, j[14])
        return nil
      end
    end
    if may_expire then put('ZREM', EXPIRING, id) end
    places[fn] = places[fn] - 1
    local token = tonumber(j[12] or '0') + 1
    redis.call('HSET', key, 'token', token, 'state', 'processing', 'runner', runner, 'claimed', now)
    if j[14] or j[15] then redis.call('HDEL', key, 'pseq', 'progress') end
    lease_add(id, fn, pool, now + lease_ms)
    return {id, token, fn, j[2], pool, prio, j[3], j[4], j[5], j[6], j[7], j[8], j[9], j[10],
      j[16] or nil}
  end

  local s = redis.call('HMGET', stride, 'v', 'high', 'normal', 'low', 'maxc', 'w:high', 'w:normal', 'w:low')
  local limit = tonumber(s[5] or '') or 0
  local room = limit > 0 and limit - leases_in(busy_key(pool)) or math.huge
  -- A pool that is full by its own limit is not rung for: whoever ends a job of it rings.
  if room <= 0 then return end
  free = math.min(free, room)
  local taken = 0
  if free > 0 then
    local v, pass, step = tonumber(s[1] or '0'), {}, {}
    for i, prio in ipairs(ORDER) do
      pass[prio] = tonumber(s[1 + i] or '0')
      step[prio] = SCALE / (tonumber(s[5 + i] or '') or WEIGHTS[prio])
    end
    -- Expired ids, ids without a record and those that are set aside cost a look and no slot; a bound keeps one step
    -- short, and the bell calls for the next.
    local looks = free + 500
    while taken < free and waiting > 0 and looks > 0 do
      local best = nil
      for _, prio in ipairs(ORDER) do
        if left[prio] > 0 and (best == nil or pass[prio] < pass[best]) then best = prio end
      end
      -- A lane that is alone has every turn.
      local n = left[best] == waiting and math.min(free - taken, waiting, looks) or 1
      if n > 1 then begin_many() end
      popped, popped_from = redis.call('LPOP', lane_key(pool, best), n), best
      for i, id in ipairs(popped) do
        looked_at = i
        local c = take(pool, best, id)
        if c then
          claims[#claims + 1] = c
          taken = taken + 1
          v = pass[best]
          pass[best] = pass[best] + step[best]
        end
      end
      left[best], waiting, looks = left[best] - n, waiting - n, looks - n
    end
    redis.call('HSET', stride, 'v', v, 'high', pass.high, 'normal', pass.normal, 'low', pass.low)
  end
  if waiting > 0 and taken < room then ring(pool) end
end

if settlements > 0 then guarded(settle_all) end
for _ = 1, pools do
  local pool = ARGV[at]
  local is_done, problem = pcall(claim, pool, tonumber(ARGV[at + 1]))
  if not is_done then
    -- Those behind a job that cannot be read stay where they were.
    for i = popped and #popped or 0, (looked_at or 0) + 1, -1 do
      redis.call('LPUSH', lane_key(pool, popped_from), popped[i])
    end
    ring(pool)
    flush()
    error(problem, 0)
  end
  at = at + 2
end
if #freed > 0 then
  flush()
  -- use: _parked
  for _, fn in ipairs(freed) do unpark(fn) end
end
flush()
return {now, next_due(), tonumber(redis.call('GET', REV) or '0'), settled, claims}
