#!lua flags=no-writes
local dumps = {}
for i, id in ipairs(a.ids) do dumps[i] = call('HGETALL', session_key(id)) end
return dumps
