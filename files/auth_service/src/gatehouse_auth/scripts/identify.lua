-- Who the person of a grant is now; a grant that has ended stays so.
-- KEYS: family   ARGV: identity
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'identity', ARGV[1])
return 1
