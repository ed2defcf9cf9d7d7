-- Rotate a refresh token. Within the grace window the one before the current gets the same successor (the
-- salt from which its holder's secret derives it), and after it too if its holder was told of a fault instead;
-- anything older has been copied.
-- KEYS: family, person, client, its keys   ARGV: family id, presented digest, successor's digest, its salt, grace in
-- milliseconds, seconds of the family, seconds of the client, the person, the client
local current, previous, salt, rotated, forgiven =
  unpack(redis.call('HMGET', KEYS[1], 'current', 'previous', 'salt', 'rotated', 'forgiven'))
if not current then
  return {'gone', ''}
end
local now = redis.call('TIME')
local milliseconds = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
if current == ARGV[2] then
  redis.call('HSET', KEYS[1], 'current', ARGV[3], 'previous', ARGV[2], 'salt', ARGV[4],
    'rotated', milliseconds)
  salt = ARGV[4]
-- With the same salt it is the same attempt, repeated because its reply was lost.
elseif previous ~= ARGV[2]
  or (salt ~= ARGV[4] and milliseconds - tonumber(rotated) > tonumber(ARGV[5]) and forgiven ~= ARGV[2]) then
  return {'replayed', ''}
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('ZADD', KEYS[2], milliseconds, ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[3], ARGV[7])
redis.call('EXPIRE', KEYS[4], ARGV[7])
redis.call('ZREM', 'gh:clients:unused', KEYS[3], KEYS[4])
redis.call('ZADD', 'gh:people', 'XX', milliseconds, ARGV[8])
redis.call('ZADD', 'gh:clients', 'XX', milliseconds, ARGV[9])
return {'done', salt}
