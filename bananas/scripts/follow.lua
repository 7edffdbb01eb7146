-- Have the runners of jobs tell what they print, because somebody follows it.
--
-- KEYS     the fixed keys (see _lib.lua)
-- ARGV     1 prefix, then id, token of the attempt whose runner was told already ('' = none) per job
-- derived  job:<id> HASH (read), inbox:<runner> LIST
-- returns  {token that was told or '' per job}
local out = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local j = redis.call('HMGET', job_key(id), 'state', 'runner', 'token')
  out[#out + 1] = ''
  if j[1] == 'processing' then
    out[#out] = j[3]
    if j[3] ~= ARGV[i + 1] then
      local inbox = P .. 'inbox:' .. j[2]
      redis.call('RPUSH', inbox, 'follow ' .. id .. ' ' .. j[3])
      redis.call('LTRIM', inbox, -10000, -1)
      redis.call('PEXPIRE', inbox, 60000)
    end
  end
end
return out
