#!lua flags=no-writes
local ids = call('SMEMBERS', P .. 'running:job')
for _, id in ipairs(call('LRANGE', P .. 'queue:job', 0, -1)) do ids[#ids + 1] = id end
return ids
