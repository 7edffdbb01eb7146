-- Set, remove, pause or resume the schedule of a function. In the transaction that switches or removes the function, so
-- that no slot ever meets a half of both.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 function, 3 'set' | 'remove' | 'pause' | 'resume'; for set: 4 revision, 5 cron, 6 zone, 7 catchup,
--          8 overlap, 9 payload (JSON)
-- derived  schedules SET, cron:<function> HASH, held:<function> LIST
-- returns  1 when it changed something, 0 when it was so, -1 when the function has no schedule (pause, resume)
local fn, op = ARGV[2], ARGV[3]
local key, held = P .. 'cron:' .. fn, P .. 'held:' .. fn
local h = redis.call('HMGET', key, 'rev', 'cron', 'tz', 'last', 'paused')

local function drop_held()
  local n = redis.call('LLEN', held)
  if n > 0 then
    redis.call('DEL', held)
    count('cron_missed:' .. fn, n)
  end
end

-- What was due until now is not due any more; never goes back, whatever the server's clock does.
local function start_from_now()
  redis.call('HSET', key, 'last', math.max(now_ms(), tonumber(h[4] or '0')))
end

if op == 'remove' then
  redis.call('SREM', P .. 'schedules', fn)
  redis.call('HDEL', COUNTERS, 'cron_lag:' .. fn)
  drop_held()
  return redis.call('DEL', key)
end

if op == 'set' then
  if h[1] == ARGV[4] then return 0 end
  redis.call('HSET', key, 'rev', ARGV[4], 'cron', ARGV[5], 'tz', ARGV[6], 'catchup', ARGV[7], 'overlap', ARGV[8],
    'payload', ARGV[9], 'paused', h[5] or 0)
  redis.call('SADD', P .. 'schedules', fn)
  if h[2] ~= ARGV[5] or h[3] ~= ARGV[6] then
    drop_held()
    start_from_now()
  end
  return 1
end

if not h[1] then return -1 end
local paused = op == 'pause' and '1' or '0'
if h[5] == paused then return 0 end
redis.call('HSET', key, 'paused', paused)
if paused == '0' then start_from_now() end
return 1
