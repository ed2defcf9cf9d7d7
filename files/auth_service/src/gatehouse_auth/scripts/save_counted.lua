-- Save what strangers can have saved. All of a kind is counted, and the oldest make room for the newest, so that a
-- flood can neither fill the memory nor keep anyone out.
-- KEYS: what is saved, its kind   ARGV: record, seconds that it lives, now, most of its kind
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3] - ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], KEYS[1])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], over)
  for i = 1, #oldest, 2 do
    redis.call('DEL', oldest[i])
  end
end
return 1
