-- Create jobs, see create() in _create.lua. Each is taken or refused by itself.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, 2 most queued jobs per pool and in the schedule, 3 most callbacks that are not told yet, 4 ms that an
--          old version is kept for; then 19 per job: id, function, payload, pool or '', priority or '', timeout ms or '',
--          max retries or '', delay ms, run at (Unix ms) or '', expires after ms or '', reply list or '', unique key or
--          '', traceparent or '', callback url or '', API token with a rate or '', interval ms and burst of that rate, 1
--          when somebody waits for the answer or '', a job whose version it takes or ''
-- derived  fn:<function> HASH (read), job:<id> HASH, lane:<pool>:<priority> LIST, stride:<pool>, bell:<pool>,
--          unique:<function>:<key> STRING, parked:<function> (read), jobs:<function> ZSET, rate:token:<id> and
--          rate:function:<function> STRING
-- returns  {answer of create() per job}
-- use: _lanes _create
if #ARGV > 4 + 19 then begin_many() end

local function create_all()
  local answers = {}
  for i = 5, #ARGV, 19 do
    answers[#answers + 1] = create({id = ARGV[i], fn = ARGV[i + 1], payload = ARGV[i + 2], pool = ARGV[i + 3],
      prio = ARGV[i + 4], timeout = ARGV[i + 5], maxr = ARGV[i + 6], delay = ARGV[i + 7], run_at = ARGV[i + 8],
      expires = ARGV[i + 9], reply = ARGV[i + 10], uniq = ARGV[i + 11], trace = ARGV[i + 12], cb = ARGV[i + 13],
      token = ARGV[i + 14], interval = ARGV[i + 15], burst = ARGV[i + 16], sync = ARGV[i + 17], like = ARGV[i + 18],
      limit = ARGV[2], most_callbacks = ARGV[3], keep = tonumber(ARGV[4]), is_called = true})
  end
  return answers
end

local answers = guarded(create_all)
flush()
return answers
