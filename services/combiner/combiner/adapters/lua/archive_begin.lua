#!lua flags=allow-oom
-- Nothing may be under way; and nothing may be there, unless it is to be replaced. Records of models that were only
-- found in the store do not count: a Redis that lost its data has them, and it is what a backup is for.
local jobs, sessions = #unended('job'), #unended('session')
if jobs + sessions > 0 then
  return redis.error_reply('FCCONFLICT ' .. jobs .. ' jobs and ' .. sessions .. ' sessions have not ended')
end
local there = 0
for _, kind in ipairs({'job', 'session', 'model'}) do there = there + call('ZCARD', P .. 'all:' .. kind) end
there = there - call('SCARD', P .. 'found')
if there > 0 and not a.replace then
  return redis.error_reply('FCFULL ' .. there .. ' jobs, sessions and models are there')
end
call('DEL', P .. 'newest:committed', P .. 'newest:put')
-- The objects of models that the backup does not name are not ours to judge.
call('SET', P .. 'born', NOW)
