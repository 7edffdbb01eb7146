-- Take jobs back whose lease has run out: their runner is gone or cannot reach Redis. Each goes to the head of its
-- lane at once without using a retry; the one that has lost its runner too often is poisoned.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most jobs to take, 3 losses until poisoned, 4 push bytes, 5 reply list length, 6 history lines,
--          7 dead letter ttl ms
-- derived  job:<id>, lane:<pool>:<priority>, stride:<pool>, bell:<pool>, running:<function>, busy:<pool>,
--          parked:<function>, called:<function>, reply lists
-- returns  {returned, poisoned}
-- use: _parked _end
local now = now_ms()
local poisoned, backs, pools, fns = 0, {}, {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))) do
  local key = job_key(id)
  local j = redis.call('HMGET', key, 'fn', 'pool', 'prio', 'token', 'runner', 'claimed', 'enqueued', 'hist')
  if j[1] then
    lease_drop(id, j[1], j[2])
    local losses = redis.call('HINCRBY', key, 'losses', 1)
    local message = 'runner ' .. j[5] .. ' did not extend its lease'
    local err = cjson.encode({type = 'Lost', message = message})
    local attempt = '{"token":' .. j[4] .. ',"outcome":"lost","runner":' .. cjson.encode(j[5]) ..
      ',"started_at_ms":' .. j[6] .. ',"error":' .. err .. '}'
    local fields = remember(key, j[8], attempt, '', tonumber(ARGV[6]))
    count('outcome:' .. j[1] .. ':lost')
    count('lost')
    if losses >= tonumber(ARGV[3]) then
      poisoned = poisoned + 1
      finish(id, {now = now, state = 'failed', reason = 'poisoned', result = '', error = err, attempt = attempt,
        ttl = tonumber(ARGV[7]), push_bytes = tonumber(ARGV[4]), reply_list = tonumber(ARGV[5])}, fields)
    else
      backs[#backs + 1] = {id = id, fn = j[1], pool = j[2], prio = j[3], enqueued = tonumber(j[7])}
      redis.call('HSET', key, 'enqueued', now, unpack(fields))
    end
    pools[#pools + 1], fns[#fns + 1] = j[2], j[1]
  else
    redis.call('ZREM', LEASES, id)
    count('orphans')
  end
end
give_back(backs)
for i, fn in ipairs(fns) do
  unpark(fn)
  ring_if_bounded(pools[i])
end
return {#backs, poisoned}
