-- Cancel a job wherever it is. A running attempt loses its lease here, so its report will be refused, and its runner
-- is told at once so that it can end it.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 id, 3 reply list length
-- derived  job:<id>, lane:<pool>:<priority>, reply lists, inbox:<runner> LIST
-- returns  {'cancelled'} | {'over', state} | {'missing'}
local id = ARGV[2]
local j = redis.call('HMGET', job_key(id), 'state', 'pool', 'prio', 'runner', 'token', 'ttl')
local state = j[1]
if not state then return {'missing'} end
if state == 'pending' then
  redis.call('LREM', lane_key(j[2], j[3]), 1, id)
elseif state == 'scheduled' then
  redis.call('ZREM', K.schedule, id)
elseif state == 'processing' then
  redis.call('ZREM', K.leases, id)
  local inbox = P .. 'inbox:' .. j[4]
  redis.call('RPUSH', inbox, 'cancel ' .. id .. ' ' .. j[5])
  redis.call('LTRIM', inbox, -10000, -1)
  redis.call('PEXPIRE', inbox, 60000)
else
  return {'over', state}
end
finish(id, {now = now_ms(), state = 'cancelled', reason = '', result = '', error = '', attempt = 'null',
  ttl = tonumber(j[6]), push_bytes = 0, reply_list = tonumber(ARGV[3])})
count('cancelled')
return {'cancelled'}
