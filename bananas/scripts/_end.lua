-- How an attempt is kept and how a job ends.

-- Append one attempt (a JSON text that starts with {"token":N,) to the history `hist`; beyond `keep` lines the oldest goes,
-- with its logs. Returns fields and values for the job, which the caller writes.
local function remember(key, hist, attempt, logs, keep)
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
  if logs == '' then return {'hist', hist} end
  return {'hist', hist, 'log:' .. string.match(attempt, '"token":(%d+)'), logs}
end

-- Tell every waiter that the job is over. `o`: state, attempt (JSON text), result, push_bytes, reply_list.
local function notify(id, o, waiters)
  local small = #o.result <= o.push_bytes
  local message = id .. '\n' .. o.state .. '\n' .. o.attempt .. '\n' .. (small and ('r' .. o.result) or 'x')
  for list in string.gmatch(waiters, '[^\n]+') do
    post(list, message, o.reply_list)
  end
end

-- End a job that is in no lane, schedule or lease any more. `o` as for notify, plus now, reason, error, ttl (ms).
-- Failed jobs are dead letters, unless somebody waited for the answer and has it; completed and cancelled ones are done.
-- The record goes when its time is over. `fields`: what else is to be written with it, or nil; `who`: its waiters, uniq, cb
-- and sync, if they were read already.
local function finish(id, o, fields, who)
  local key = job_key(id)
  local waiters, uniq, cb, sync = unpack(who or redis.call('HMGET', key, 'waiters', 'uniq', 'cb', 'sync'))
  local is_awaited = waiters and waiters ~= ''
  fields = fields or {}
  if is_awaited then
    fields[#fields + 1] = 'waiters'
    fields[#fields + 1] = ''
  end
  redis.call('HSET', key, 'state', o.state, 'finished', o.now, 'reason', o.reason, 'result', o.result, 'error', o.error,
    unpack(fields))
  local is_call = o.state == 'failed' and sync
  local kept = is_call and CALL_MS or o.ttl
  if cb then
    kept = math.max(kept, CALLBACK_MS)
    -- use: _tell
    tell_end(key, id, o.now)
  end
  if is_call then
    put('ZADD', CALLS, o.now, id)
  elseif o.state == 'failed' then
    put('ZADD', DEAD, o.now, id)
    count('dead:' .. o.reason)
  else
    put('ZADD', DONE, o.now + kept, id)
  end
  redis.call('PEXPIRE', key, kept + UNSWEPT_MS)
  if is_awaited then notify(id, o, waiters) end
  if uniq and uniq ~= '' then
    -- use: _unique
    unique_end(key, id, o.state)
  end
end

-- Take a job that waits (pending, scheduled or parked) out of its place. `number`: its pseq, if it has one.
local function unqueue(id, state, fn, pool, prio, number)
  -- use: _lanes
  if state == 'scheduled' then
    redis.call('ZREM', SCHEDULE, id)
  elseif state == 'parked' then
    redis.call('ZREM', parked_key(fn), ticket(pool, prio, number, id))
  else
    redis.call('LREM', lane_key(pool, prio), 1, id)
    if number then redis.call('ZREM', called_key(fn), ticket(pool, prio, number, id)) end
  end
end

-- Fail a job that waited, out of its place already, because its time is over.
local function expire(id, o)
  o.state, o.reason, o.result, o.attempt = 'failed', 'expired', '', 'null'
  o.error = '{"type":"Expired","message":"the job waited longer than its expires_after"}'
  finish(id, o)
end
