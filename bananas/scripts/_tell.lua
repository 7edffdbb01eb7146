-- How the end of a job gets to its callback_url.

-- Have the end of a job told to its callback_url. The number of the end goes into the delivery's id: a replayed job has
-- another end, which takes the place of one that was not told yet.
local function tell_end(key, id, now)
  redis.call('HINCRBY', key, 'cbend', 1)
  redis.call('HSET', key, 'cbstate', 'pending', 'cbtries', 0, 'cberr', '')
  redis.call('ZADD', CALLBACKS, now, id)
  redis.call('ZADD', P .. 'callbacks:bell', 0, 'ring')
end
