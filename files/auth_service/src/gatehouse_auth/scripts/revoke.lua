-- Revoke a grant or one access token, and tell every node. With a person's last grant goes what their provider
-- is asked with. A Redis that is full lets a script write that has deleted something, so that comes first.
-- KEYS: mark, family   ARGV: id, seconds of the mark, channel
local person = redis.call('HGET', KEYS[2], 'person')
redis.call('DEL', KEYS[2])
if person then
  redis.call('ZREM', 'gh:person:' .. person, ARGV[1])
  if redis.call('EXISTS', 'gh:person:' .. person) == 0 then
    redis.call('DEL', 'gh:upstream:' .. person)
    redis.call('ZREM', 'gh:due', person)
  end
end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
