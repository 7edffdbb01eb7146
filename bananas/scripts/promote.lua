-- Move jobs that are due from the schedule to the tail of their lanes. Any number of runners may call this at once.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most jobs to move
-- derived  job:<id>, lane:<pool>:<priority>, stride:<pool>, bell:<pool>
-- returns  {moved, now, next due or -1}
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', K.schedule, '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, id in ipairs(due) do
  redis.call('ZREM', K.schedule, id)
  local j = redis.call('HMGET', job_key(id), 'pool', 'prio')
  if j[1] then
    redis.call('HSET', job_key(id), 'state', 'pending')
    lane_push(j[1], j[2], id, false)
  else
    count('orphans')
  end
end
return {#due, now, next_due()}
