-- Bring back jobs that were set aside for their function's max_concurrency, after that has changed.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, then functions
-- derived  fn:<function> (read), parked:<function>, called:<function>, running:<function>, job:<id>,
--          lane:<pool>:<priority>, bell:<pool>
-- returns  jobs that came back
-- use: _parked
local moved = 0
for i = 2, #ARGV do moved = moved + unpark(ARGV[i]) end
return moved
