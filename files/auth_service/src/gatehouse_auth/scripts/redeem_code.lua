-- Trade an authorization code for a grant, once. The code leaves a mark that names the grant, so that a
-- replay is known as one. Repeating the same attempt (the reply was lost) gives the same answer.
-- KEYS: code, family, client   ARGV: family id, seconds of the mark, seconds of the family, seconds of the
-- client, refresh digest ('' for none), then the family's fields and values
local held = redis.call('GET', KEYS[1])
if not held then
  return 'gone'
end
if string.sub(held, 1, 5) == 'used:' then
  return held == 'used:' .. ARGV[1] and 'done' or held
end
redis.call('SET', KEYS[1], 'used:' .. ARGV[1], 'EX', ARGV[2])
if ARGV[5] ~= '' then
  local fields = {'current', ARGV[5]}
  for i = 6, #ARGV do
    fields[#fields + 1] = ARGV[i]
  end
  redis.call('HSET', KEYS[2], unpack(fields))
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
redis.call('EXPIRE', KEYS[3], ARGV[4])
redis.call('ZREM', 'gh:clients:unused', KEYS[3])
return 'done'
