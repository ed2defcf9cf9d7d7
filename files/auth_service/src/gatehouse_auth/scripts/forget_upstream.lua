-- Forget what a provider gave to ask again with, unless there is another by now.
-- KEYS: record, queue   ARGV: mark, name
if redis.call('HGET', KEYS[1], 'mark') ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
