-- The holder of a refresh token was not given its successor: until that is used, the token gives it again.
-- KEYS: family   ARGV: the token's digest, its successor's
local current, previous = unpack(redis.call('HMGET', KEYS[1], 'current', 'previous'))
if current == ARGV[2] and previous == ARGV[1] then
  redis.call('HSET', KEYS[1], 'forgiven', ARGV[1])
end
return 1
