-- How a job comes into being. Needs _lanes.

-- A rate is a bucket of `burst` jobs that gets one more each `interval` ms; its key holds when it will be full (Unix
-- ms), which is all there is to know. `m`: scope (token | function), name, interval, burst.
local function rate_key(m) return P .. 'rate:' .. m.scope .. ':' .. m.name end

-- When the bucket will be full, as if one had been taken from it now. A server's clock that was set back empties it.
local function full_at(m, now)
  local at = math.max(now, tonumber(redis.call('GET', rate_key(m)) or '0')) + m.interval
  return math.min(at, now + (m.burst + 1) * m.interval)
end

-- Milliseconds until it has one; 0: now.
local function rate_wait(m, now)
  local wait = full_at(m, now) - now - m.burst * m.interval
  return wait > 0.01 and math.ceil(wait) or 0 -- less is rounding
end

local function rate_take(m, now)
  local at = full_at(m, now)
  redis.call('SET', rate_key(m), string.format('%.3f', at), 'PX', math.ceil(at - now))
end

-- The rates that a new job counts against: that of the token it came with and that of its function.
local function rates_of(j, interval, burst)
  local rates = {}
  if j.token and j.token ~= '' then
    rates[1] = {scope = 'token', name = j.token, interval = tonumber(j.interval), burst = tonumber(j.burst)}
  end
  if j.is_called and interval and interval ~= '' then
    rates[#rates + 1] = {scope = 'function', name = j.fn, interval = tonumber(interval), burst = tonumber(burst)}
  end
  return rates
end

-- What functions say of their jobs, each read once in a script.
local functions = {}

-- Why there is no room for a job now, as an answer of create(); nil when there is.
local function no_room(j, pool, rates, now)
  local queued = queued_in(pool, j.fn)
  if queued >= tonumber(j.limit) then return 'queue_full', {'full', pool, queued} end
  if j.cb and j.cb ~= '' then
    local untold = redis.call('ZCARD', CALLBACKS)
    if untold >= tonumber(j.most_callbacks) then return 'callbacks_full', {'callbacks_full', untold} end
  end
  for _, m in ipairs(rates) do
    local wait = rate_wait(m, now)
    if wait > 0 then
      return m.scope .. '_rate', {'limited', m.scope, m.name, wait, tostring(m.interval), m.burst}
    end
  end
  return nil
end

-- Fields that only some jobs have.
local OPTIONAL = {'uniq', 'trace', 'cb', 'sync'}

-- Create a job, with everything that its function says stamped on it at this moment: a later deploy never changes it.
-- The same id twice creates one job, so a client may safely send it again after a lost connection; the same unique key
-- twice answers with the first job. `j`: id, fn, payload; pool, prio, timeout (ms), maxr, run_at (Unix ms), expires (ms
-- from now), reply (list), uniq, each '' when not given; delay (ms); limit (most queued jobs), most_callbacks (ends that
-- are not told yet); is_called: it counts against rates. Each '' or nil when not given: trace (traceparent), cb
-- (callback_url), token (of the API) with interval (ms) and burst of its rate, sync ('1': somebody waits for the answer),
-- like (an earlier job of the function, whose version and settings it takes instead; keep: ms that these then stay).
-- Answers {'ok', version, state, pool, timeout, duplicate 0|1, id} | {'unknown_function'} | {'unknown_pool', allowed}
-- | {'unknown_model'} | {'version_gone', version}
-- | {'full', pool, queued} | {'callbacks_full', how many} | {'limited', scope, name, wait ms, interval ms, burst}.
local function create(j)
  local key = job_key(j.id)
  local old = redis.call('HMGET', key, 'ver', 'state', 'pool', 'timeout')
  if old[1] then return {'ok', old[1], old[2], old[3], old[4], 0, j.id} end

  local ukey = j.uniq ~= '' and (P .. 'unique:' .. j.fn .. ':' .. j.uniq)
  local first = ukey and redis.call('GET', ukey)
  if first then
    local id, ver, state, pool, timeout = string.match(first, '^(.-)\n(.-)\n(.-)\n(.-)\n(.*)$')
    local now_state = redis.call('HGET', job_key(id), 'state')
    -- Without a record and without an end, the key is of a job that somebody deleted by hand.
    if now_state or redis.call('PTTL', ukey) > 0 then
      return {'ok', ver, now_state or state, pool, timeout, 1, id}
    end
  end

  local f = functions[j.fn] or redis.call('HMGET', P .. 'fn:' .. j.fn, 'version', 'pool', 'priority', 'timeout', 'maxr',
    'retry', 'ttl', 'allow', 'rate', 'burst')
  functions[j.fn] = f
  local ver, pool, prio, timeout, maxr, retry, ttl, allow = unpack(f, 1, 8)
  if not ver then return {'unknown_function'} end
  if j.like and j.like ~= '' then
    local m = redis.call('HMGET', job_key(j.like), 'fn', 'ver', 'timeout', 'maxr', 'retry', 'ttl')
    if m[1] ~= j.fn then return {'unknown_model'} end
    if redis.call('EXISTS', version_key(j.fn, m[2])) == 0 then return {'version_gone', m[2]} end
    ver, timeout, maxr, retry, ttl = unpack(m, 2, 6)
  end
  if j.pool ~= '' and j.pool ~= pool then
    if not string.find(',' .. allow .. ',', ',' .. j.pool .. ',', 1, true) then
      return {'unknown_pool', pool .. (allow ~= '' and (',' .. allow) or '')}
    end
    pool = j.pool
  end
  if j.prio ~= '' then prio = j.prio end
  timeout, maxr = tonumber(timeout), tonumber(maxr)
  if j.timeout ~= '' then timeout = math.min(timeout, tonumber(j.timeout)) end
  if j.maxr ~= '' then maxr = math.min(maxr, tonumber(j.maxr)) end

  local now = now_ms()
  local due = j.run_at ~= '' and tonumber(j.run_at) or (now + tonumber(j.delay))
  local rates = rates_of(j, f[9], f[10])
  local why, refusal = no_room(j, pool, rates, now)
  if why then
    count('refused:' .. j.fn .. ':' .. why)
    return refusal
  end

  local state = due > now and 'scheduled' or 'pending'
  local expires = j.expires ~= '' and (now + tonumber(j.expires)) or 0
  local given = {}
  for _, name in ipairs(OPTIONAL) do
    if j[name] and j[name] ~= '' then
      given[#given + 1] = name
      given[#given + 1] = j[name]
    end
  end
  redis.call('HSET', key, 'fn', j.fn, 'ver', ver, 'pool', pool, 'prio', prio, 'state', state, 'payload', j.payload,
    'created', now, 'enqueued', math.max(now, due), 'due', due, 'timeout', timeout, 'maxr', maxr, 'retry', retry,
    'ttl', ttl, 'expires', expires, 'token', 0, 'failures', 0, 'losses', 0, 'starts', 0, 'waiters', j.reply,
    unpack(given))
  -- A record of this id that ended by its own time may still be in the janitor's books.
  put('ZREM', DONE, j.id)
  put('ZREM', DEAD, j.id)
  put('ZREM', CALLS, j.id)
  if j.like and j.like ~= '' then keep_version(j.fn, ver, j.keep) end
  if ukey then redis.call('SET', ukey, unique_value(j.id, ver, state, pool, timeout)) end
  for _, m in ipairs(rates) do rate_take(m, now) end
  if expires > 0 then put('ZADD', EXPIRING, expires, j.id) end
  put('ZADD', listed_key(j.fn), now, j.id)
  count('enqueued:' .. j.fn)
  if state == 'scheduled' then
    schedule_push(pool, j.id, due)
    grew(SCHEDULE)
  else
    grew(lane_key(pool, prio))
    lane_append(pool, prio, j.id)
  end
  return {'ok', ver, state, pool, tostring(timeout), 0, j.id}
end
