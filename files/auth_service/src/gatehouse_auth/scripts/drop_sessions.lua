-- End every session of a person.
-- KEYS: the person's sessions
for _, session in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('DEL', session)
end
redis.call('DEL', KEYS[1])
return 1
