-- Take ids without a record out of the list of their function: records that ended by themselves, see UNSWEPT_MS.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 function, then ids
-- derived  job:<id> (read), jobs:<function>
-- returns  how many were taken out
local gone = 0
for i = 3, #ARGV do
  if redis.call('EXISTS', job_key(ARGV[i])) == 0 then
    gone = gone + redis.call('ZREM', listed_key(ARGV[2]), ARGV[i])
  end
end
return gone
