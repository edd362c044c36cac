#!lua flags=no-writes
local rows = {}
for i, id in ipairs(a.ids) do rows[i] = call('HGETALL', P .. 'reported:' .. id) end
return rows
