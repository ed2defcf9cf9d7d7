-- Keep what a provider gave to ask again with. Whoever is asking with the one before is not heard any more.
-- KEYS: record, queue   ARGV: name, the person, credential, seconds until it is used, seconds that it is kept
redis.call('HSET', KEYS[1], 'user', ARGV[2], 'credential', ARGV[3], 'mark', '', 'doubt', '', 'failures', '0')
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1] + ARGV[4], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
