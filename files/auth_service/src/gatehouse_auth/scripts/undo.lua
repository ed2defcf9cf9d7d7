-- Undo a write that no replica has, unless something came of it.
-- KEYS: the proof of the write, then what becomes as it was   ARGV: the proof's value, then the value and the
-- milliseconds of each (-2: it was not there)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
for i = 2, #KEYS do
  local milliseconds = tonumber(ARGV[2 * i - 1])
  if milliseconds > 0 then
    redis.call('SET', KEYS[i], ARGV[2 * i - 2], 'PX', ARGV[2 * i - 1])
  else
    redis.call('DEL', KEYS[i])
  end
end
return 1
