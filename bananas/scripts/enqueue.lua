-- Create jobs, see create() in _lib.lua. Each is taken or refused by itself.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most queued jobs per pool and in the schedule; then 13 per job: id, function, payload, pool or '',
--          priority or '', timeout ms or '', max retries or '', delay ms, run at (Unix ms) or '', expires after ms or '',
--          reply list or '', unique key or '', traceparent or ''
-- derived  fn:<function> HASH (read), job:<id> HASH, lane:<pool>:<priority> LIST, stride:<pool>, bell:<pool>,
--          unique:<function>:<key> STRING, parked:<function> (read), jobs:<function> ZSET
-- returns  {answer of create() per job}
local answers = {}
for i = 3, #ARGV, 13 do
  answers[#answers + 1] = create({id = ARGV[i], fn = ARGV[i + 1], payload = ARGV[i + 2], pool = ARGV[i + 3],
    prio = ARGV[i + 4], timeout = ARGV[i + 5], maxr = ARGV[i + 6], delay = ARGV[i + 7], run_at = ARGV[i + 8],
    expires = ARGV[i + 9], reply = ARGV[i + 10], uniq = ARGV[i + 11], trace = ARGV[i + 12], limit = ARGV[2]})
end
return answers
