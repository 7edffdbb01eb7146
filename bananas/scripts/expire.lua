-- Fail jobs that waited longer than their expires_after without a first attempt, wherever they wait, and also when no
-- runner serves their pool.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most jobs to look at, 3 push bytes, 4 reply list length, 5 dead letter ttl ms,
--          6 only this id, or ''
-- derived  job:<id>, lane:<pool>:<priority>, parked:<function>, called:<function>, reply lists
-- returns  jobs looked at
-- use: _parked _end
local now = now_ms()
local ids
if ARGV[6] ~= '' then
  local due = redis.call('ZSCORE', EXPIRING, ARGV[6])
  ids = (due and tonumber(due) <= now) and {ARGV[6]} or {}
else
  ids = redis.call('ZRANGEBYSCORE', EXPIRING, '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
end
for _, id in ipairs(ids) do
  redis.call('ZREM', EXPIRING, id)
  local j = redis.call('HMGET', job_key(id), 'state', 'fn', 'pool', 'prio', 'token', 'pseq', 'fresh')
  local waits = j[1] == 'pending' or j[1] == 'scheduled' or j[1] == 'parked'
  if waits and j[5] == (j[7] or '0') then
    unqueue(id, j[1], j[2], j[3], j[4], j[6])
    expire(id, {now = now, ttl = tonumber(ARGV[5]), push_bytes = tonumber(ARGV[3]), reply_list = tonumber(ARGV[4])})
    unpark(j[2])
  end
end
return #ids
