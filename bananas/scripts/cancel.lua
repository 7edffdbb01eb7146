-- Cancel a job wherever it is. A running attempt loses its lease here, so its report will be refused, and its runner
-- is told at once so that it can end it; it stays in the history, without what it printed.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 id, 3 reply list length, 4 history lines
-- derived  job:<id>, lane:<pool>:<priority>, parked:<function>, called:<function>, running:<function>, busy:<pool>,
--          reply lists, inbox:<runner> LIST
-- returns  {'cancelled'} | {'over', state} | {'missing'}
-- use: _parked _end
local id = ARGV[2]
local j = redis.call('HMGET', job_key(id), 'state', 'pool', 'prio', 'runner', 'token', 'ttl', 'fn', 'expires', 'pseq',
  'claimed', 'hist')
local state, pool, fn = j[1], j[2], j[7]
local fields
if not state then return {'missing'} end
if state == 'pending' or state == 'scheduled' or state == 'parked' then
  unqueue(id, state, fn, pool, j[3], j[9])
elseif state == 'processing' then
  lease_drop(id, fn, pool)
  fields = remember(job_key(id), j[11], '{"token":' .. j[5] .. ',"outcome":"cancelled","runner":' .. cjson.encode(j[4]) ..
    ',"started_at_ms":' .. j[10] .. '}', '', tonumber(ARGV[4]))
  count('outcome:' .. fn .. ':cancelled')
  ring_if_bounded(pool)
  local inbox = P .. 'inbox:' .. j[4]
  redis.call('RPUSH', inbox, 'cancel ' .. id .. ' ' .. j[5])
  redis.call('LTRIM', inbox, -10000, -1)
  redis.call('PEXPIRE', inbox, 60000)
else
  return {'over', state}
end
if j[8] ~= '0' then redis.call('ZREM', EXPIRING, id) end
finish(id, {now = now_ms(), state = 'cancelled', reason = '', result = '', error = '', attempt = 'null',
  ttl = tonumber(j[6]), push_bytes = 0, reply_list = tonumber(ARGV[3])}, fields)
count('cancelled')
unpark(fn)
return {'cancelled'}
