-- Trade an authorization code for a grant, once. The code leaves a mark that names the grant, so that a
-- replay is known as one. Repeating the same attempt (the reply was lost) gives the same answer. The grant
-- is noted with its person, and those that are too many come back.
-- KEYS: code, family, person, client, its keys   ARGV: family id, seconds of the mark, seconds of the family,
-- seconds of the client, most grants of a person, the person, most people, the client, most clients, refresh digest
-- ('' for none), then the family's fields and values
local held = redis.call('GET', KEYS[1])
if not held then
  return {'gone'}
end
if string.sub(held, 1, 5) == 'used:' then
  return {held == 'used:' .. ARGV[1] and 'done' or held}
end
redis.call('SET', KEYS[1], 'used:' .. ARGV[1], 'EX', ARGV[2])
redis.call('EXPIRE', KEYS[4], ARGV[4])
redis.call('EXPIRE', KEYS[5], ARGV[4])
redis.call('ZREM', 'gh:clients:unused', KEYS[4], KEYS[5])
if ARGV[10] == '' then
  return {'done'}
end
local fields = {'current', ARGV[10]}
for i = 11, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
redis.call('HSET', KEYS[2], unpack(fields))
redis.call('EXPIRE', KEYS[2], ARGV[3])
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', milliseconds - ARGV[3] * 1000))
redis.call('ZADD', KEYS[3], string.format('%.0f', milliseconds), ARGV[1])
-- Operators look through those that were active last.
for key, entry in pairs({['gh:people'] = {ARGV[6], ARGV[7]}, ['gh:clients'] = {ARGV[8], ARGV[9]}}) do
  redis.call('ZADD', key, string.format('%.0f', milliseconds), entry[1])
  redis.call('ZREMRANGEBYRANK', key, 0, -entry[2] - 1)
end
redis.call('EXPIRE', KEYS[3], ARGV[3])
return {'done', unpack(redis.call('ZRANGE', KEYS[3], 0, -ARGV[5] - 1))}
