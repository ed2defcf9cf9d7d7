-- Rotate a refresh token. Within the grace window the one before the current gets the same successor (the
-- salt from which its holder's secret derives it); anything older has been copied.
-- KEYS: family, client   ARGV: presented digest, successor's digest, its salt, grace in milliseconds,
-- seconds of the family, seconds of the client
local current, previous, salt, rotated =
  unpack(redis.call('HMGET', KEYS[1], 'current', 'previous', 'salt', 'rotated'))
if not current then
  return {'gone', ''}
end
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
if current == ARGV[1] then
  redis.call('HSET', KEYS[1], 'current', ARGV[2], 'previous', ARGV[1], 'salt', ARGV[3],
    'rotated', string.format('%.0f', milliseconds))
  salt = ARGV[3]
elseif previous ~= ARGV[1] or milliseconds - tonumber(rotated) > tonumber(ARGV[4]) then
  return {'replayed', ''}
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return {'done', salt}
