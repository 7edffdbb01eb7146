-- Extend the leases of all attempts that a runner has in flight.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 runner, 3 lease ms, then id, token per attempt
-- derived  job:<id> HASH (read)
-- returns  {1|0 per attempt}: 0 means that the attempt is not the job's any more and must be ended, unreported
-- A full Redis refuses scripts whose first write needs memory, but an extension needs none: begin with one that is let
-- through, or every long job would lose its lease.
redis.call('ZREM', LEASES, '')
local now, lease_ms = now_ms(), tonumber(ARGV[3])
local out = {}
for i = 4, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local mine = is_held(id, token, ARGV[2])
  if mine then redis.call('ZADD', LEASES, 'XX', now + lease_ms, id) end
  out[#out + 1] = mine and 1 or 0
end
return out
