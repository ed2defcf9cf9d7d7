-- Revoke a grant or one access token, and tell every node. With a person's last grant goes what their provider
-- is asked with. A Redis that is full lets a script write that has deleted something, so that comes first.
-- A registration that was never used has no tokens from when they lived longer; strangers can make and remove as
-- many of those as they like, so that their marks last no longer than they have to.
-- KEYS: mark, family   ARGV: id, seconds of the mark, seconds of an unused registration's, channel
local person = redis.call('HGET', KEYS[2], 'person')
redis.call('DEL', KEYS[2])
if person then
  redis.call('ZREM', 'gh:person:' .. person, ARGV[1])
  if redis.call('EXISTS', 'gh:person:' .. person) == 0 then
    redis.call('DEL', 'gh:upstream:' .. person)
    redis.call('ZREM', 'gh:due', person)
  end
end
local unused = redis.call('ZREM', 'gh:clients:unused', 'gh:client:' .. ARGV[1]) == 1
redis.call('SET', KEYS[1], '1', 'EX', unused and ARGV[3] or ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return 1
