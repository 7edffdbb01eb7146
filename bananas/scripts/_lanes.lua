-- How ids come into lanes and the schedule.

-- After `added` ids came into a lane and made it `length` long. One that was empty starts at the pool's virtual time, so
-- that it cannot claim the turns it did not need while it was empty.
local function lane_grew(pool, prio, length, added)
  if length == added then
    local stride = P .. 'stride:' .. pool
    local s = redis.call('HMGET', stride, 'v', prio)
    local v = tonumber(s[1] or '0')
    if tonumber(s[2] or '0') < v then redis.call('HSET', stride, prio, v) end
  end
end

-- Put an id at the head of its lane, at once.
local function lane_push(pool, prio, id)
  lane_grew(pool, prio, redis.call('LPUSH', lane_key(pool, prio), id), 1)
  ring(pool)
end

-- Put an id at the end of its lane. No script may need both ends of one.
local function lane_append(pool, prio, id)
  local lane = lane_key(pool, prio)
  if not later then
    lane_grew(pool, prio, redis.call('RPUSH', lane, id), 1)
    ring(pool)
    return
  end
  local ids = later.tails[lane] or {pool = pool, prio = prio}
  later.tails[lane] = ids
  ids[#ids + 1] = id
end

-- Schedule an id; a new earliest one rings, so that a sleeping runner learns of its new next due time.
local function schedule_push(pool, id, due)
  redis.call('ZADD', SCHEDULE, due, id)
  local head = redis.call('ZRANGE', SCHEDULE, 0, 0)
  if head[1] == id then ring(pool) end
end

-- How long a lane, the schedule and what is set aside are, read once in a script and then kept up to date here.
local sizes = {}
local function size(command, key)
  local n = sizes[key] or redis.call(command, key)
  sizes[key] = n
  return n
end
local function grew(key) sizes[key] = sizes[key] and sizes[key] + 1 end

-- Jobs that wait where a new one of the function would: its pool's lanes, the schedule, set aside.
local function queued_in(pool, fn)
  local queued = size('ZCARD', SCHEDULE) + size('ZCARD', parked_key(fn))
  for _, p in ipairs(ORDER) do queued = queued + size('LLEN', lane_key(pool, p)) end
  return queued
end

-- How parked:<function> and called:<function> name a job: both sort by this text alone, so the jobs of one lane lie
-- together, in the order of their numbers.
local function ticket(pool, prio, number, id)
  return pool .. ':' .. RANK[prio] .. ':' .. string.format('%016.0f', tonumber(number)) .. ':' .. id
end
