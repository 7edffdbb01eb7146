-- Shared by every script: it is put in front of each file by scripts/__init__.py.
-- K names the fixed keys in the order in which queue.py passes them; P is the common prefix, also the tag.
local K = {schedule = KEYS[1], leases = KEYS[2], dead = KEYS[3], done = KEYS[4], counters = KEYS[5], rev = KEYS[6]}
local P = ARGV[1]

-- Stride scheduling within a pool: a lane's pass grows by 1008 / weight for each claim, weights 16:4:1, and the
-- smallest pass goes next. So low is served at least once in 21 claims of its pool, however busy the others are.
local STRIDE = {high = 63, normal = 252, low = 1008}
local ORDER = {'high', 'normal', 'low'}

-- Unix time in ms by the server's clock, the only clock that decides anything.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return P .. 'job:' .. id end
local function lane_key(pool, prio) return P .. 'lane:' .. pool .. ':' .. prio end

-- Wake one runner that is blocked on the pool. One member, so the bell can never grow.
local function ring(pool) redis.call('ZADD', P .. 'bell:' .. pool, 0, 'ring') end

-- Put an id into its lane. A lane that was empty starts at the pool's virtual time, so that it cannot claim the
-- turns it did not need while it was empty.
local function lane_push(pool, prio, id, at_head)
  local n = redis.call(at_head and 'LPUSH' or 'RPUSH', lane_key(pool, prio), id)
  if n == 1 then
    local stride = P .. 'stride:' .. pool
    local s = redis.call('HMGET', stride, 'v', prio)
    local v = tonumber(s[1] or '0')
    if tonumber(s[2] or '0') < v then redis.call('HSET', stride, prio, v) end
  end
  ring(pool)
end

-- Schedule an id; a new earliest one rings, so that a sleeping runner learns of its new next due time.
local function schedule_push(pool, id, due)
  redis.call('ZADD', K.schedule, due, id)
  local head = redis.call('ZRANGE', K.schedule, 0, 0)
  if head[1] == id then ring(pool) end
end

-- The next due time (Unix ms) of the schedule, or -1.
local function next_due()
  local head = redis.call('ZRANGE', K.schedule, 0, 0, 'WITHSCORES')
  return head[2] and tonumber(head[2]) or -1
end

local function count(field, by) redis.call('HINCRBY', K.counters, field, by or 1) end

-- Append one attempt (a JSON text that starts with {"token":N,) to the history; beyond `keep` lines the oldest goes,
-- with its logs.
local function remember(key, attempt, logs, keep)
  local hist = redis.call('HGET', key, 'hist')
  if hist and hist ~= '' then
    local _, lines = string.gsub(hist, '\n', '')
    if lines + 1 >= keep then
      local cut = string.find(hist, '\n', 1, true)
      local oldest = cut and string.sub(hist, 1, cut - 1) or hist
      local token = string.match(oldest, '"token":(%d+)')
      if token then redis.call('HDEL', key, 'log:' .. token) end
      hist = cut and string.sub(hist, cut + 1) or ''
    end
  end
  hist = (hist and hist ~= '') and (hist .. '\n' .. attempt) or attempt
  redis.call('HSET', key, 'hist', hist)
  if logs ~= '' then
    redis.call('HSET', key, 'log:' .. string.match(attempt, '"token":(%d+)'), logs)
  end
end

-- Tell every waiter that the job is over. `o`: id, state, attempt (JSON text), result, push_bytes, reply_list.
local function notify(key, o)
  local waiters = redis.call('HGET', key, 'waiters')
  if not waiters or waiters == '' then return end
  local small = #o.result <= o.push_bytes
  local message = o.id .. '\n' .. o.state .. '\n' .. o.attempt .. '\n' .. (small and ('r' .. o.result) or 'x')
  for list in string.gmatch(waiters, '[^\n]+') do
    redis.call('RPUSH', list, message)
    redis.call('LTRIM', list, -o.reply_list, -1)
    redis.call('PEXPIRE', list, 60000)
  end
  redis.call('HDEL', key, 'waiters')
end

-- End a job that is in no lane, schedule or lease any more. `o` as for notify, plus now, reason, error, ttl (ms).
-- Failed jobs are dead letters; completed and cancelled ones are done. The record goes when its time is over.
local function finish(id, o)
  local key = job_key(id)
  redis.call('HSET', key, 'state', o.state, 'finished', o.now, 'reason', o.reason, 'result', o.result, 'error', o.error)
  if o.state == 'failed' then
    redis.call('ZADD', K.dead, o.now, id)
    count('dead:' .. o.reason)
  else
    redis.call('ZADD', K.done, o.now + o.ttl, id)
  end
  redis.call('PEXPIRE', key, o.ttl)
  o.id = id
  notify(key, o)
end
