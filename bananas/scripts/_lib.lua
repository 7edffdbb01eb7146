-- What scripts share, put in front of each by scripts/__init__.py. The other libraries take the place of a line that says
-- `use` and their names; of all of them a script gets only what it names. It makes its functions anew whenever it is called,
-- so what few calls need is made inside the function that needs it.
--
-- The fixed keys come in the order in which scripts.Caller passes them; P is the common prefix, also the tag.
local SCHEDULE, LEASES, DEAD, DONE, COUNTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local REV, EXPIRING, CALLBACKS, CALLS = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local P = ARGV[1]

-- Stride scheduling within a pool: a lane's pass grows by SCALE / weight for each claim and the smallest pass goes next.
-- So between two claims of a lane of weight w, another one of weight x gets at most x / w of them, rounded up, however
-- busy it is: with the default weights low is served at least once in 1 + 16 + 4 = 21 claims of its pool.
local SCALE = 1008
local WEIGHTS = {high = 16, normal = 4, low = 1}
local ORDER = {'high', 'normal', 'low'}
local RANK = {high = 0, normal = 1, low = 2}
-- Most arguments of one command that a script puts together.
local CHUNK = 1000
-- A record ends by itself only when no janitor has dropped it this long (ms) after its time: who drops it must still
-- read whose job it was.
local UNSWEPT_MS = 60000
-- How long after its end (ms) a job may still be told to its callback_url. Its record stays at least as long, or until
-- that is done.
local CALLBACK_MS = 86400000
-- How long the record of a failed synchronous call is kept, in ms: as long as its idempotency key stands.
local CALL_MS = 86400000

-- Unix time in ms by the server's clock, the only clock that decides anything.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return P .. 'job:' .. id end
local function lane_key(pool, prio) return P .. 'lane:' .. pool .. ':' .. prio end
local function parked_key(fn) return P .. 'parked:' .. fn end
local function called_key(fn) return P .. 'called:' .. fn end
local function running_key(fn) return P .. 'running:' .. fn end
local function busy_key(pool) return P .. 'busy:' .. pool end
local function listed_key(fn) return P .. 'jobs:' .. fn end
local function version_key(fn, ver) return P .. 'version:' .. fn .. '@' .. ver end

-- What a script that works on several jobs writes and does not read is put off to its end: one command for each key then,
-- where there would be one for each job, also in the append-only file. For one job alone that costs more than it saves, so
-- nothing is put off before begin_many(). Never the first write of a script: a full Redis judges all of it by that.
-- Who reads such a key after all calls flush() before.
local later = nil
local function begin_many() later = later or {sums = {}, puts = {}, tails = {}, mail = {}, rung = {}} end

-- ZADD, SADD, ZREM or SREM of a key: a member, or a score and a member.
local function put(command, key, a, b)
  if not later then
    if b then redis.call(command, key, a, b) else redis.call(command, key, a) end
    return
  end
  local keys = later.puts[command] or {}
  later.puts[command] = keys
  local args = keys[key] or {}
  keys[key] = args
  args[#args + 1] = a
  args[#args + 1] = b
end

-- Add to a counter.
local function count(field, by)
  if later then
    later.sums[field] = (later.sums[field] or 0) + (by or 1)
  else
    redis.call('HINCRBY', COUNTERS, field, by or 1)
  end
end

-- Add a time in ms, to the µs, so that sums are exact.
local function count_ms(field, ms)
  if later then
    count(field, tonumber(ms))
  else
    redis.call('HINCRBYFLOAT', COUNTERS, field, ms)
  end
end

-- Wake one runner that is blocked on the pool. One member, so the bell can never grow.
local function ring(pool)
  if later then
    later.rung[pool] = true
  else
    redis.call('ZADD', P .. 'bell:' .. pool, 0, 'ring')
  end
end

-- One command in as many pieces as its arguments need; returns the last answer.
local function write(command, key, args)
  local answer
  for i = 1, #args, CHUNK do
    answer = redis.call(command, key, unpack(args, i, math.min(i + CHUNK - 1, #args)))
  end
  return answer
end

-- Put messages into a reply list that holds at most `most`.
local function deliver(list, messages, most)
  if write('RPUSH', list, messages) > most then redis.call('LTRIM', list, -most, -1) end
  redis.call('PEXPIRE', list, 60000)
end

-- Put a message into a reply list, see deliver().
local function post(list, message, most)
  if not later then
    deliver(list, {message}, most)
    return
  end
  local messages = later.mail[list] or {most = most}
  later.mail[list] = messages
  messages[#messages + 1] = message
end

-- Write what was put off.
local function flush()
  if not later then return end
  -- use: _lanes
  local these = later
  later = nil
  -- Removals go first: what a script takes out and puts in again is in.
  for _, command in ipairs({'ZREM', 'SREM', 'ZADD', 'SADD'}) do
    for key, args in pairs(these.puts[command] or {}) do write(command, key, args) end
  end
  local fields, set = {}, {}
  for field in pairs(these.sums) do fields[#fields + 1] = field end
  for i = 1, #fields, CHUNK do
    local old = redis.call('HMGET', COUNTERS, unpack(fields, i, math.min(i + CHUNK - 1, #fields)))
    for at, value in ipairs(old) do
      local field = fields[i + at - 1]
      local sum = tonumber(value or '0') + these.sums[field]
      set[#set + 1] = field
      set[#set + 1] = string.format(sum % 1 == 0 and '%.0f' or '%.3f', sum)
    end
  end
  write('HSET', COUNTERS, set)
  for lane, ids in pairs(these.tails) do
    lane_grew(ids.pool, ids.prio, write('RPUSH', lane, ids), #ids)
    these.rung[ids.pool] = true
  end
  for list, messages in pairs(these.mail) do deliver(list, messages, messages.most) end
  for pool in pairs(these.rung) do ring(pool) end
  begin_many()
end

-- Call a function; when it fails, what was put off is written before the script ends: a job that cannot be read leaves none
-- of those before it half written.
local function guarded(work)
  local is_done, answer = pcall(work)
  if is_done then return answer end
  flush()
  error(answer, 0)
end

-- A version that is not current any more ends by itself: not before `ms` from now, since a job needs it.
local function keep_version(fn, ver, ms)
  local ttl = redis.call('PTTL', version_key(fn, ver))
  if ttl >= 0 and ttl < ms then redis.call('PEXPIRE', version_key(fn, ver), ms) end
end

-- The next due time (Unix ms) of the schedule, or -1.
local function next_due()
  local head = redis.call('ZRANGE', SCHEDULE, 0, 0, 'WITHSCORES')
  return head[2] and tonumber(head[2]) or -1
end

-- max_concurrency of a function, 0 when it has none.
local function limit_of(fn) return tonumber(redis.call('HGET', P .. 'fn:' .. fn, 'maxc') or '') or 0 end

-- Leases are kept in three places that only these functions touch, so that they can't come apart: the deadlines, and who
-- runs by function and by pool, from which max_concurrency is derived.
local function lease_add(id, fn, pool, deadline)
  put('ZADD', LEASES, deadline, id)
  put('SADD', running_key(fn), id)
  put('SADD', busy_key(pool), id)
end

-- True when the lease stood. At once: the same attempt may be reported twice in one script.
local function lease_drop(id, fn, pool)
  if redis.call('ZREM', LEASES, id) == 0 then return false end
  put('SREM', running_key(fn), id)
  put('SREM', busy_key(pool), id)
  return true
end

-- How many leases running:<function> or busy:<pool> holds.
local function leases_in(key)
  flush()
  return redis.call('SCARD', key)
end

-- True while the attempt is the job's. The runner counts too: a failover that forgets a claim gives its token again.
local function is_held(id, token, runner)
  local j = redis.call('HMGET', job_key(id), 'token', 'runner')
  return j[1] == token and j[2] == runner and redis.call('ZSCORE', LEASES, id)
end

-- Drop a record, and its place in the list of its function; a tombstone tells for a while that it was here.
local function bury(id, seconds)
  local fn = redis.call('HGET', job_key(id), 'fn')
  if fn then redis.call('ZREM', listed_key(fn), id) end
  redis.call('DEL', job_key(id))
  redis.call('SET', P .. 'tomb:' .. id, '', 'EX', seconds)
end

-- Unique keys: unique:<function>:<key> holds id, version, state, pool and timeout of the first job, one on a line.
local UNIQUE_MS = 86400000
local function unique_value(id, ver, state, pool, timeout)
  return id .. '\n' .. ver .. '\n' .. state .. '\n' .. pool .. '\n' .. timeout
end
