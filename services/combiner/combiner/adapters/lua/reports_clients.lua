#!lua flags=no-writes
local rows = {}
for i, client in ipairs(a.clients) do rows[i] = call('HGETALL', P .. 'told:' .. client) end
return rows
