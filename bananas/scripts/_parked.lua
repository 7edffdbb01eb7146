-- Jobs that are set aside because their function is full, or come back.

-- Most jobs of one lane that are called back out of parked:<function> and not taken yet.
local UNPARK = 1000

-- Set a job aside whose function is at its max_concurrency. It keeps the number of its first time, so that the jobs of
-- one lane stay in order however often they come back too early.
local function park(id, fn, pool, prio, number)
  -- use: _lanes
  local n = tonumber(number) or redis.call('INCR', P .. 'park:seq')
  redis.call('HSET', job_key(id), 'state', 'parked', 'pseq', n)
  redis.call('ZADD', parked_key(fn), 0, ticket(pool, prio, n, id))
end

-- Bring jobs of a function back to the heads of their lanes, in each lane as many as the function has room for: the
-- lanes' strides then choose among them, no pool waits for another one, and who is too late is set aside again. To be
-- called whenever a job of the function stops running, or leaves its lane without running. Returns how many came back.
local function unpark(fn)
  local key = parked_key(fn)
  local first = redis.call('ZRANGE', key, 0, 0)
  if not first[1] then return 0 end
  local limit = limit_of(fn)
  local room = limit > 0 and math.min(UNPARK, limit - leases_in(running_key(fn))) or UNPARK
  if room <= 0 then return 0 end
  -- use: _lanes

  -- Put a job that was called back into its lane: behind those of its function that were called before and have a smaller
  -- number, else at the head.
  local function call_back(pool, prio, lane, name, id)
    redis.call('HSET', job_key(id), 'state', 'pending')
    local before = redis.call('ZREVRANGEBYLEX', called_key(fn), '(' .. name, '[' .. lane, 'LIMIT', 0, 1)
    local pivot = before[1] and string.match(before[1], '^[^:]+:%d:%d+:(.*)$')
    if pivot and redis.call('LINSERT', lane_key(pool, prio), 'AFTER', pivot, id) > 0 then
      ring(pool)
    else
      lane_push(pool, prio, id)
    end
  end

  -- Call jobs of one lane back, so that the first `room` of all that have a number are on their way. Returns how many.
  local function unpark_lane(lane, past)
    local called = called_key(fn)
    local names = redis.call('ZRANGEBYLEX', key, '[' .. lane, past, 'LIMIT', 0, room)
    if redis.call('EXISTS', called) == 1 then
      local n = 0
      while n < #names and n + redis.call('ZLEXCOUNT', called, '[' .. lane, '(' .. names[n + 1]) < room do n = n + 1 end
      for i = #names, n + 1, -1 do names[i] = nil end
    end
    local moved = {}
    for i = #names, 1, -1 do
      redis.call('ZREM', key, names[i])
      local id = string.match(names[i], '^[^:]+:%d:%d+:(.*)$')
      local j = redis.call('HMGET', job_key(id), 'state', 'pool', 'prio')
      if j[1] == 'parked' then
        call_back(j[2], j[3], lane, names[i], id)
        moved[#moved + 1] = names[i]
      else
        count('orphans')
      end
    end
    for _, name in ipairs(moved) do redis.call('ZADD', called, 0, name) end
    return #moved
  end

  local moved = 0
  while first[1] do
    local lane = string.match(first[1], '^[^:]+:%d:')
    local past = '(' .. string.sub(lane, 1, -2) .. ';' -- the character after ':'
    moved = moved + unpark_lane(lane, past)
    first = redis.call('ZRANGEBYLEX', key, '[' .. string.sub(past, 2), '+', 'LIMIT', 0, 1)
  end
  return moved
end

-- Give jobs whose attempt ended without a result back to the heads of their lanes, in the order in which they had become
-- runnable. One whose function has a max_concurrency goes before all that wait for the same place. `jobs`: {id, fn,
-- pool, prio, enqueued}.
local function give_back(jobs)
  -- use: _lanes
  table.sort(jobs, function(a, b)
    if a.enqueued ~= b.enqueued then return a.enqueued > b.enqueued end
    return a.id > b.id
  end)
  for _, j in ipairs(jobs) do
    if limit_of(j.fn) > 0 then
      redis.call('HSET', job_key(j.id), 'state', 'pending', 'pseq', 0)
      redis.call('ZADD', called_key(j.fn), 0, ticket(j.pool, j.prio, 0, j.id))
    else
      redis.call('HSET', job_key(j.id), 'state', 'pending')
    end
    lane_push(j.pool, j.prio, j.id)
  end
end

-- After leases of a pool ended: one that is bounded by its own max_concurrency has told no bell while it was full.
local function ring_if_bounded(pool)
  if (tonumber(redis.call('HGET', P .. 'stride:' .. pool, 'maxc') or '') or 0) > 0 then ring(pool) end
end
