-- Move jobs that are due from the schedule to the tail of their lanes. Any number of runners may call this at once.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most jobs to move
-- derived  job:<id>, lane:<pool>:<priority>, stride:<pool>, bell:<pool>
-- returns  {moved, now, next due or -1}
-- use: _lanes
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', SCHEDULE, '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))

local function move()
  for i, id in ipairs(due) do
    -- The first write of the script, which a full Redis lets through.
    if i == 1 then redis.call('ZREM', SCHEDULE, id) else put('ZREM', SCHEDULE, id) end
    local j = redis.call('HMGET', job_key(id), 'pool', 'prio')
    if j[1] then
      redis.call('HSET', job_key(id), 'state', 'pending')
      lane_append(j[1], j[2], id)
    else
      count('orphans')
    end
  end
end

if #due > 1 then begin_many() end
guarded(move)
flush()
return {#due, now, next_due()}
