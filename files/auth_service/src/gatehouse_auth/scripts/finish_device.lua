-- A finished sign-in decides about the device that waits for it, once.
-- KEYS: flow, device, user code   ARGV: device record
if redis.call('GET', KEYS[2]) == ARGV[1] then
  return 1 -- the reply to this very decision was lost
end
if redis.call('DEL', KEYS[1]) == 0 then
  return 0
end
if redis.call('DEL', KEYS[3]) == 0 then
  return 0
end
return redis.call('SET', KEYS[2], ARGV[1], 'XX', 'KEEPTTL') and 1 or 0
