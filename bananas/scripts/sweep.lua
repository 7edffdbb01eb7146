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
drop(K.done, redis.call('ZRANGEBYSCORE', K.done, '-inf', now, 'LIMIT', 0, most))
drop(K.dead, redis.call('ZRANGEBYSCORE', K.dead, '-inf', now - tonumber(ARGV[3]), 'LIMIT', 0, most))
drop(K.calls, redis.call('ZRANGEBYSCORE', K.calls, '-inf', now - CALL_MS, 'LIMIT', 0, most))
local calls = math.min(redis.call('ZCARD', K.calls) - tonumber(ARGV[6]), most)
if calls > 0 then drop(K.calls, redis.call('ZRANGE', K.calls, 0, calls - 1)) end
local over = math.min(redis.call('ZCARD', K.dead) - tonumber(ARGV[4]), most)
if over > 0 then
  count('trimmed', over)
  drop(K.dead, redis.call('ZRANGE', K.dead, 0, over - 1))
end
return dropped
