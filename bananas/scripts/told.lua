-- How a try to tell a job's end went: it was delivered, or comes again, or there is no point in trying.
--
-- That it was delivered counts from whoever says it; that it was not, only from the one whose turn it still is. Nothing
-- counts for an end that a replay has taken back.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 id, 3 number of the end, 4 number of the try, 5 delivered | again | never, 6 ms until it comes again,
--          7 most tries, 8 what went wrong
-- derived  job:<id>
-- returns  'delivered' | 'again' | 'failed' | 'stale' (nothing was changed)
local id, verdict, delay, now = ARGV[2], ARGV[5], tonumber(ARGV[6]), now_ms()
local key = job_key(id)
local j = redis.call('HMGET', key, 'cbend', 'cbtries', 'cbstate', 'state', 'finished', 'ttl', 'fn')
if j[3] ~= 'pending' or j[1] ~= ARGV[3] then return 'stale' end
if verdict ~= 'delivered' and j[2] ~= ARGV[4] then return 'stale' end

local is_last = tonumber(j[2]) >= tonumber(ARGV[7]) or now + delay > tonumber(j[5]) + CALLBACK_MS
if verdict == 'again' and not is_last then
  redis.call('HSET', key, 'cberr', ARGV[8])
  redis.call('ZADD', CALLBACKS, now + delay, id)
  count('callback:' .. j[7] .. ':again')
  return 'again'
end

local state = verdict == 'delivered' and 'delivered' or 'failed'
redis.call('HSET', key, 'cbstate', state, 'cberr', ARGV[8])
redis.call('ZREM', CALLBACKS, id)
count('callback:' .. j[7] .. ':' .. state)
-- The record has not to wait for this any more.
if j[4] ~= 'failed' then
  local ends = math.max(now, tonumber(j[5]) + tonumber(j[6]))
  redis.call('ZADD', DONE, ends, id)
  redis.call('PEXPIRE', key, ends - now + UNSWEPT_MS)
end
return state
