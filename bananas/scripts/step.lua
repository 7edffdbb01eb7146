-- One round trip of a runner: settle the attempts that ended, then claim up to the free slots of each pool.
--
-- Settling needs the job's own token and a standing lease; anything else changes nothing and answers 0. A claim
-- raises the token, which nothing ever lowers. Each live id stays in exactly one of lane, schedule, leases, dead, done.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 runner, 3 lease ms, 4 push bytes, 5 reply list length, 6 history lines, 7 dead letter ttl ms,
--          8 number of settlements, 9 number of pools; then 12 values per settlement: id, token,
--          action (complete|retry|dead|back), delay ms, outcome, reason, result, error (JSON), attempt (JSON), logs,
--          duration bucket ('' = none), run ms; then 2 values per pool: name, free slots (0 = only ring again)
-- derived  job:<id>, lane:<pool>:<priority>, stride:<pool>, bell:<pool>, reply lists named in job:<id> waiters
-- returns  {now, next due or -1, revision of the pools, {1|0 per settlement}, {claim...}}; a claim is {id, token,
--          function, version, pool, priority, payload, timeout ms, retry (JSON), failures, starts, enqueued, ttl, maxr}
local runner, lease_ms = ARGV[2], tonumber(ARGV[3])
local push_bytes, reply_list, keep, dead_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local settlements, pools = tonumber(ARGV[8]), tonumber(ARGV[9])
local now = now_ms()
local at = 10

local function over(id, state, reason, result, err, attempt, ttl)
  finish(id, {now = now, state = state, reason = reason, result = result, error = err, attempt = attempt, ttl = ttl,
    push_bytes = push_bytes, reply_list = reply_list})
end

local function settle(id, token, action, delay, outcome, reason, result, err, attempt, logs, bucket, run_ms)
  local key = job_key(id)
  local j = redis.call('HMGET', key, 'token', 'fn', 'pool', 'prio', 'ttl')
  if j[1] ~= token or redis.call('ZREM', K.leases, id) == 0 then return 0 end
  remember(key, attempt, logs, keep)
  count('outcome:' .. j[2] .. ':' .. outcome)
  if bucket ~= '' then
    count('ms:' .. j[2] .. ':' .. bucket)
    redis.call('HINCRBYFLOAT', K.counters, 'ms_sum:' .. j[2], run_ms)
  end
  if action == 'complete' then
    over(id, 'completed', '', result, '', attempt, tonumber(j[5]))
  elseif action == 'dead' then
    if outcome ~= 'start' then redis.call('HINCRBY', key, 'failures', 1) end
    over(id, 'failed', reason, '', err, attempt, dead_ttl)
  elseif action == 'retry' then
    local due = now + tonumber(delay)
    redis.call('HINCRBY', key, outcome == 'start' and 'starts' or 'failures', 1)
    redis.call('HSET', key, 'state', 'scheduled', 'due', due, 'enqueued', due, 'error', err)
    schedule_push(j[3], id, due)
    count('retries')
  else -- back: as if it had never been claimed, but for the token
    redis.call('HSET', key, 'state', 'pending')
    lane_push(j[3], j[4], id, true)
  end
  return 1
end

local settled = {}
for i = 1, settlements do
  local a = ARGV
  settled[i] = settle(a[at], a[at + 1], a[at + 2], a[at + 3], a[at + 4], a[at + 5], a[at + 6], a[at + 7], a[at + 8],
    a[at + 9], a[at + 10], a[at + 11])
  at = at + 12
end

local claims = {}

-- Take one id: nil when its record is gone or it has expired (both are then out of every list).
local function take(pool, prio, id)
  local key = job_key(id)
  local j = redis.call('HMGET', key, 'fn', 'ver', 'payload', 'timeout', 'retry', 'failures', 'starts', 'enqueued',
    'ttl', 'maxr', 'expires', 'token')
  if not j[1] then
    count('orphans')
    return nil
  end
  if tonumber(j[11]) > 0 and tonumber(j[11]) < now and j[12] == '0' then
    local err = '{"type":"Expired","message":"the job waited longer than its expires_after"}'
    over(id, 'failed', 'expired', '', err, 'null', dead_ttl)
    return nil
  end
  local token = redis.call('HINCRBY', key, 'token', 1)
  redis.call('HSET', key, 'state', 'processing', 'runner', runner, 'claimed', now)
  redis.call('ZADD', K.leases, now + lease_ms, id)
  return {id, token, j[1], j[2], pool, prio, j[3], j[4], j[5], j[6], j[7], j[8], j[9], j[10]}
end

local function claim(pool, free)
  local stride = P .. 'stride:' .. pool
  local left, waiting = {}, 0
  for _, prio in ipairs(ORDER) do
    left[prio] = redis.call('LLEN', lane_key(pool, prio))
    waiting = waiting + left[prio]
  end
  if waiting == 0 then return end
  if free > 0 then
    local s = redis.call('HMGET', stride, 'v', 'high', 'normal', 'low')
    local v = tonumber(s[1] or '0')
    local pass = {high = tonumber(s[2] or '0'), normal = tonumber(s[3] or '0'), low = tonumber(s[4] or '0')}
    -- Expired ids and ids without a record cost a look and no slot; a bound keeps one step short, and the bell calls
    -- for the next.
    local looks = free + 500
    while free > 0 and waiting > 0 and looks > 0 do
      looks = looks - 1
      local best = nil
      for _, prio in ipairs(ORDER) do
        if left[prio] > 0 and (best == nil or pass[prio] < pass[best]) then best = prio end
      end
      local id = redis.call('LPOP', lane_key(pool, best))
      left[best], waiting = left[best] - 1, waiting - 1
      local c = take(pool, best, id)
      if c then
        claims[#claims + 1] = c
        free = free - 1
        v = pass[best]
        pass[best] = pass[best] + STRIDE[best]
      end
    end
    redis.call('HSET', stride, 'v', v, 'high', pass.high, 'normal', pass.normal, 'low', pass.low)
  end
  if waiting > 0 then ring(pool) end
end

for _ = 1, pools do
  claim(ARGV[at], tonumber(ARGV[at + 1]))
  at = at + 2
end

return {now, next_due(), tonumber(redis.call('GET', K.rev) or '0'), settled, claims}
