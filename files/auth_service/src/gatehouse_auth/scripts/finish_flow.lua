-- A finished sign-in becomes one authorization code, once.
-- KEYS: flow, code   ARGV: code record, seconds that the code lives
if redis.call('GET', KEYS[2]) == ARGV[1] then
  return 1 -- the reply to this very attempt was lost
end
if redis.call('DEL', KEYS[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return 1
