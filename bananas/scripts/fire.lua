-- Decide one slot of a schedule: the step from the last slot to this one and the job that it makes are one.
--
-- Any number of schedulers may propose any slot at any time: the first to propose one decides it, and a slot that is not
-- later than the last decided one is refused. So are slots in the future by this server's clock, and those that were
-- computed from another revision of the schedule. A slot of '' is the oldest one that waits in held:<function>.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 function, 3 revision, 4 slot (Unix ms) or '', 5 id of the new job, or '' to leave the slot out,
--          6 slots left out with or before it, 7 most queued jobs, 8 most held slots
-- derived  cron:<function> HASH, held:<function> LIST, and those of create()
-- returns  {'fired', id, lag ms} | {'held'} | {'skipped', id of the job before} | {'passed'} | {'none'} nothing is held
--          | {'past', last slot} | {'early', now} | {'paused'} | {'changed'} | {'gone'} | {'full'}
-- use: _lanes _create
local fn, slot = ARGV[2], ARGV[4]
local key, held = P .. 'cron:' .. fn, P .. 'held:' .. fn
local h = redis.call('HMGET', key, 'rev', 'paused', 'last', 'overlap', 'job', 'payload')
local now = now_ms()
local is_release = slot == ''

if not h[1] then return {'gone'} end
if h[1] ~= ARGV[3] then return {'changed'} end
if h[2] == '1' then return {'paused'} end
if is_release then
  slot = redis.call('LINDEX', held, 0)
  if not slot then return {'none'} end
else
  if tonumber(slot) <= tonumber(h[3]) then return {'past', h[3]} end
  if tonumber(slot) > now then return {'early', now} end
end

-- The slot is decided, without a job.
local function decide()
  redis.call('HSET', key, 'last', slot, 'slot', slot)
  if ARGV[6] ~= '0' then count('cron_missed:' .. fn, ARGV[6]) end
end

local function is_before_live()
  local state = h[5] and redis.call('HGET', job_key(h[5]), 'state')
  return state == 'pending' or state == 'scheduled' or state == 'parked' or state == 'processing'
end

if is_release then
  if is_before_live() then return {'held'} end
elseif ARGV[5] == '' then
  decide()
  return {'passed'}
elseif h[4] == 'skip' and is_before_live() then
  decide()
  count('cron_skipped:' .. fn)
  return {'skipped', h[5]}
elseif h[4] == 'queue' and (redis.call('EXISTS', held) == 1 or is_before_live()) then
  decide()
  if redis.call('LLEN', held) >= tonumber(ARGV[8]) then
    count('cron_skipped:' .. fn)
    return {'skipped', h[5] or ''}
  end
  redis.call('RPUSH', held, slot)
  return {'held'}
end

local made = create({id = ARGV[5], fn = fn, payload = h[6], pool = '', prio = '', timeout = '', maxr = '', delay = 0,
  run_at = slot, expires = '', reply = '', uniq = 'cron:' .. fn .. '@' .. slot, limit = ARGV[7]})
if made[1] == 'unknown_function' then return {'gone'} end
if made[1] ~= 'ok' then return {made[1]} end
if is_release then redis.call('LPOP', held) else decide() end
redis.call('HSET', key, 'job', made[7])
if made[6] == 0 then
  count('cron_fired:' .. fn)
  redis.call('HSET', COUNTERS, 'cron_lag:' .. fn, now - tonumber(slot))
end
return {'fired', made[7], now - tonumber(slot)}
