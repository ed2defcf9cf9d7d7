-- Take up the person whose time came first. Until it is settled, whether the credential is still good is in
-- doubt; after the lease somebody else may take it up. Repeating the same attempt (the reply was lost) gives the
-- same person.
-- KEYS: queue, what this mark has taken   ARGV: mark, seconds of the lease
local now = tonumber(redis.call('TIME')[1])
local name = redis.call('GET', KEYS[2])
if name then
  local record = redis.call('HMGET', 'gh:upstream:' .. name, 'mark', 'user', 'credential', 'failures', 'before')
  if record[1] == ARGV[1] then
    return {name, record[2], record[3], record[4], record[5]}
  end
  return {}
end
-- A record that is over has left its name; of those no more are cleared away than this at a time.
for _, due in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)) do
  local key = 'gh:upstream:' .. due
  local user, credential, failures, doubt = unpack(redis.call('HMGET', key, 'user', 'credential', 'failures', 'doubt'))
  if user then
    redis.call('HSET', key, 'mark', ARGV[1], 'doubt', '1', 'before', doubt)
    redis.call('SET', KEYS[2], due, 'EX', ARGV[2])
    redis.call('ZADD', KEYS[1], now + ARGV[2], due)
    return {due, user, credential, failures, doubt}
  end
  redis.call('ZREM', KEYS[1], due)
end
return {}
