-- Put dead letters back into the queue: same id, same history, same pool and priority, a full set of tries.
--
-- The token stays, so that a report of an old attempt is still refused. The first goes after `delay` and each further
-- one `interval` later.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 'current' (the function's version and settings of now) or 'same' (those of the failed attempts),
--          3 ms until the first, 4 ms between two, 5 most queued jobs, 6 ms that an old version is kept for,
--          7 1 when there is a payload, 8 payload, 9 idempotency key or '', then ids
-- derived  job:<id>, fn:<function>, version:<function>@<version>, lane:<pool>:<priority>, bell:<pool>, parked:<function>
--          (read), unique:<function>:<key>
-- returns  {{'ok', state} | {'missing'} | {'not_dead', state} | {'unknown_function', function}
--          | {'version_gone', function, version} | {'full', pool, queued} per id}; 'ok' also for one that a call with
--          the same key put back before, which changes nothing
-- use: _lanes _unique
local now = now_ms()
local mode, delay, interval, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local function stamp(key, fn, ver)
  if mode == 'same' then
    if redis.call('EXISTS', version_key(fn, ver)) == 0 then return {'version_gone', fn, ver} end
    keep_version(fn, ver, tonumber(ARGV[6]))
    return nil
  end
  local f = redis.call('HMGET', P .. 'fn:' .. fn, 'version', 'timeout', 'maxr', 'retry', 'ttl')
  if not f[1] then return {'unknown_function', fn} end
  redis.call('HSET', key, 'ver', f[1], 'timeout', f[2], 'maxr', f[3], 'retry', f[4], 'ttl', f[5])
  return nil
end

local function replay(id, due)
  local key = job_key(id)
  local j = redis.call('HMGET', key, 'state', 'fn', 'ver', 'pool', 'prio', 'uniq', 'cb', 'rkey')
  if not j[1] then return {'missing'} end
  if ARGV[9] ~= '' and j[8] == ARGV[9] then return {'ok', j[1]} end
  if j[1] ~= 'failed' then return {'not_dead', j[1]} end
  local queued = queued_in(j[4], j[2])
  if queued >= limit then return {'full', j[4], queued} end
  local refused = stamp(key, j[2], j[3])
  if refused then return refused end
  redis.call('ZREM', DEAD, id)
  redis.call('ZREM', CALLS, id)
  redis.call('PERSIST', key)
  local state = due > now and 'scheduled' or 'pending'
  redis.call('HSET', key, 'state', state, 'due', due, 'enqueued', due, 'failures', 0, 'losses', 0, 'starts', 0,
    'expires', 0, 'reason', '', 'result', '', 'error', '', 'finished', '')
  redis.call('HDEL', key, 'progress', 'pseq', 'sync') -- from now on nobody waits
  if j[7] then
    redis.call('ZREM', CALLBACKS, id)
    redis.call('HDEL', key, 'cbstate', 'cbtries', 'cberr')
  end
  if j[6] and j[6] ~= '' then unique_again(key, id, state) end
  if ARGV[7] == '1' then redis.call('HSET', key, 'payload', ARGV[8]) end
  if ARGV[9] ~= '' then redis.call('HSET', key, 'rkey', ARGV[9]) end
  count('replayed')
  if state == 'scheduled' then
    schedule_push(j[4], id, due)
    grew(SCHEDULE)
  else
    grew(lane_key(j[4], j[5]))
    lane_append(j[4], j[5], id)
  end
  return {'ok', state}
end

local answers, due = {}, now + delay
for i = 10, #ARGV do
  local answer = replay(ARGV[i], due)
  if answer[1] == 'ok' then due = due + interval end
  answers[#answers + 1] = answer
end
return answers
