-- Keep the latest progress of running attempts.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 runner, then id, token, JSON text per attempt
-- derived  job:<id> HASH
-- returns  {1|0 per attempt}: 0 means that the attempt is not the job's any more
local out = {}
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  local mine = is_held(id, ARGV[i + 1], ARGV[2])
  if mine then redis.call('HSET', job_key(id), 'progress', ARGV[i + 2]) end
  out[#out + 1] = mine and 1 or 0
end
return out
