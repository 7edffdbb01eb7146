-- Create a job, with everything that its function says stamped on it at this moment: a later deploy never changes it.
-- The same id twice creates one job, so a client may safely send it again after a lost connection.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 id, 3 function, 4 payload, 5 pool or '', 6 priority or '', 7 timeout ms or '',
--          8 max retries or '', 9 delay ms, 10 run at (Unix ms) or '', 11 expires after ms or '', 12 reply list or '',
--          13 most queued jobs per pool and in the schedule
-- derived  fn:<function> HASH (read), job:<id> HASH, lane:<pool>:<priority> LIST, stride:<pool>, bell:<pool>
-- returns  {'ok', version, state, pool, timeout ms} | {'unknown_function'} | {'unknown_pool', allowed}
--          | {'full', pool, queued}
local id, name = ARGV[2], ARGV[3]
local key = job_key(id)

local old = redis.call('HMGET', key, 'ver', 'state', 'pool', 'timeout')
if old[1] then return {'ok', old[1], old[2], old[3], old[4]} end

local f = redis.call('HMGET', P .. 'fn:' .. name, 'version', 'pool', 'priority', 'timeout', 'maxr', 'retry', 'ttl', 'allow')
if not f[1] then return {'unknown_function'} end

local pool, prio = f[2], f[3]
if ARGV[5] ~= '' and ARGV[5] ~= pool then
  if not string.find(',' .. f[8] .. ',', ',' .. ARGV[5] .. ',', 1, true) then
    return {'unknown_pool', pool .. (f[8] ~= '' and (',' .. f[8]) or '')}
  end
  pool = ARGV[5]
end
if ARGV[6] ~= '' then prio = ARGV[6] end
local timeout, maxr = tonumber(f[4]), tonumber(f[5])
if ARGV[7] ~= '' then timeout = math.min(timeout, tonumber(ARGV[7])) end
if ARGV[8] ~= '' then maxr = math.min(maxr, tonumber(ARGV[8])) end

local now = now_ms()
local due = ARGV[10] ~= '' and tonumber(ARGV[10]) or (now + tonumber(ARGV[9]))
local limit = tonumber(ARGV[13])
local queued = 0
for _, p in ipairs(ORDER) do queued = queued + redis.call('LLEN', lane_key(pool, p)) end
queued = queued + redis.call('ZCARD', K.schedule)
if queued >= limit then return {'full', pool, queued} end

local state = due > now and 'scheduled' or 'pending'
local expires = ARGV[11] ~= '' and (now + tonumber(ARGV[11])) or 0
redis.call('HSET', key, 'fn', name, 'ver', f[1], 'pool', pool, 'prio', prio, 'state', state, 'payload', ARGV[4],
  'created', now, 'enqueued', math.max(now, due), 'due', due, 'timeout', timeout, 'maxr', maxr, 'retry', f[6],
  'ttl', f[7], 'expires', expires, 'token', 0, 'failures', 0, 'losses', 0, 'starts', 0, 'waiters', ARGV[12])
count('enqueued:' .. name)
if state == 'scheduled' then
  schedule_push(pool, id, due)
else
  lane_push(pool, prio, id, false)
end
return {'ok', f[1], state, pool, tostring(timeout)}
