-- Before a script that uses something up. It comes too late when Redis had stopped meanwhile; then nothing is done.
-- ARGV: after all others, until when it is in time, in milliseconds of Redis' clock
local clock = redis.call('TIME')
if clock[1] * 1000 + math.floor(clock[2] / 1000) > tonumber(table.remove(ARGV)) then
  return redis.error_reply('LATE')
end
