-- Drop dead letters for good; a tombstone stays for each, as when its time is over.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 tombstone seconds, then ids
-- derived  job:<id>, jobs:<function>, tomb:<id>
-- returns  letters dropped
local dropped = 0
for i = 3, #ARGV do
  if redis.call('ZREM', DEAD, ARGV[i]) == 1 then
    bury(ARGV[i], tonumber(ARGV[2]))
    dropped = dropped + 1
  end
end
if dropped > 0 then count('purged', dropped) end
return dropped
