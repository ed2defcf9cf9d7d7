-- What came of asking: a credential in place of the one that was used up, or when to ask again. Nothing for
-- whose turn is over.
-- KEYS: record, queue   ARGV: mark, name, credential ('' for the same), seconds until it is used ('' while this
-- goes on), failures in a row, doubt, seconds that it is kept
if redis.call('HGET', KEYS[1], 'mark') ~= ARGV[1] then
  return 0
end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'credential', ARGV[3], 'doubt', '')
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'failures', ARGV[5], 'doubt', ARGV[6])
  redis.call('ZADD', KEYS[2], redis.call('TIME')[1] + ARGV[4], ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[7])
return 1
