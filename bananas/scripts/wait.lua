-- Answer with the end of a job, or register a reply list to be told of it: one step, so no wake-up is ever lost.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 id, 3 reply list, 4 push bytes, 5 most waiters of one job
-- derived  job:<id> HASH
-- returns  {'over', state, last attempt (JSON or 'null'), 'r' .. result | 'x'} | {'waiting'} | {'missing'} | {'crowded'}
local key = job_key(ARGV[2])
local j = redis.call('HMGET', key, 'state', 'waiters', 'hist')
if not j[1] then return {'missing'} end
if j[1] == 'completed' or j[1] == 'failed' or j[1] == 'cancelled' then
  local result = redis.call('HGET', key, 'result') or ''
  local last = string.match(j[3] or '', '([^\n]+)$') or 'null'
  return {'over', j[1], last, #result <= tonumber(ARGV[4]) and ('r' .. result) or 'x'}
end
local waiters = j[2] or ''
if not string.find('\n' .. waiters .. '\n', '\n' .. ARGV[3] .. '\n', 1, true) then
  local _, lines = string.gsub(waiters, '[^\n]+', '')
  if lines >= tonumber(ARGV[5]) then return {'crowded'} end
  redis.call('HSET', key, 'waiters', waiters == '' and ARGV[3] or (waiters .. '\n' .. ARGV[3]))
end
return {'waiting'}
