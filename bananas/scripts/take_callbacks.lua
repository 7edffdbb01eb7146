-- Take ends of jobs that are to be told to their callback_url now. Each is the caller's until its lease is over; when the
-- caller has not told by then how it went (see told.lua), it died, and somebody else tries again.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most to take, 3 lease ms, then fields of job:<id>
-- derived  job:<id>, callbacks:bell
-- returns  {ms until the next is due or -1, {id, url, number of the end, number of the try, values of the fields...} each}
local now, most = now_ms(), tonumber(ARGV[2])
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', CALLBACKS, '-inf', now, 'LIMIT', 0, most)) do
  local key = job_key(id)
  local j = redis.call('HMGET', key, 'cb', 'cbend', 'cbstate')
  if j[3] == 'pending' then
    redis.call('ZADD', CALLBACKS, now + tonumber(ARGV[3]), id)
    local row = {id, j[1], tonumber(j[2]), redis.call('HINCRBY', key, 'cbtries', 1)}
    for _, value in ipairs(redis.call('HMGET', key, unpack(ARGV, 4))) do row[#row + 1] = value end
    taken[#taken + 1] = row
  else -- its record was purged meanwhile
    redis.call('ZREM', CALLBACKS, id)
    count('callbacks_lost')
  end
end
local head = redis.call('ZRANGE', CALLBACKS, 0, 0, 'WITHSCORES')
local wait = head[2] and math.max(0, tonumber(head[2]) - now) or -1
-- What was more than one could take is for the next that listens.
if wait == 0 then redis.call('ZADD', P .. 'callbacks:bell', 0, 'ring') end
return {wait, taken}
