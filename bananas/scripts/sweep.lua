-- Drop records whose time is over and leave a tombstone for each, so that an old id answers "gone" and not "unknown".
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most records to drop, 3 dead letter ttl ms, 4 most dead letters, 5 tombstone seconds,
--          6 most failed synchronous calls
-- derived  job:<id>, jobs:<function>, tomb:<id>
-- returns  records dropped
local now, most = now_ms(), tonumber(ARGV[2])
local dropped = 0
local function drop(index, ids)
  for _, id in ipairs(ids) do
    redis.call('ZREM', index, id)
    bury(id, tonumber(ARGV[5]))
    dropped = dropped + 1
  end
end
drop(DONE, redis.call('ZRANGEBYSCORE', DONE, '-inf', now, 'LIMIT', 0, most))
drop(DEAD, redis.call('ZRANGEBYSCORE', DEAD, '-inf', now - tonumber(ARGV[3]), 'LIMIT', 0, most))
drop(CALLS, redis.call('ZRANGEBYSCORE', CALLS, '-inf', now - CALL_MS, 'LIMIT', 0, most))
local calls = math.min(redis.call('ZCARD', CALLS) - tonumber(ARGV[6]), most)
if calls > 0 then drop(CALLS, redis.call('ZRANGE', CALLS, 0, calls - 1)) end
local over = math.min(redis.call('ZCARD', DEAD) - tonumber(ARGV[4]), most)
if over > 0 then
  count('trimmed', over)
  drop(DEAD, redis.call('ZRANGE', DEAD, 0, over - 1))
end
return dropped
