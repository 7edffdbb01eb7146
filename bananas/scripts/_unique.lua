-- What a job with a unique key says of itself under it.

-- A finished job stands for its key until a day after it was created, and no longer.
local function unique_end(key, id, state)
  local j = redis.call('HMGET', key, 'fn', 'uniq', 'ver', 'pool', 'timeout', 'created')
  local ukey = P .. 'unique:' .. j[1] .. ':' .. j[2]
  local first = redis.call('GET', ukey)
  if first and string.sub(first, 1, #id + 1) == id .. '\n' then
    redis.call('SET', ukey, unique_value(id, j[3], state, j[4], j[5]))
    redis.call('PEXPIREAT', ukey, tonumber(j[6]) + UNIQUE_MS)
  end
end

-- A job that lives again stands for its key again, unless another one does by now.
local function unique_again(key, id, state)
  local j = redis.call('HMGET', key, 'fn', 'uniq', 'ver', 'pool', 'timeout')
  local ukey = P .. 'unique:' .. j[1] .. ':' .. j[2]
  local first = redis.call('GET', ukey)
  if not first or string.sub(first, 1, #id + 1) == id .. '\n' then
    redis.call('SET', ukey, unique_value(id, j[3], state, j[4], j[5]))
  end
end
