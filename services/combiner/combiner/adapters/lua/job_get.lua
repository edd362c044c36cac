#!lua flags=no-writes
local dumps = {}
for i, id in ipairs(a.ids) do dumps[i] = job_dump(id) end
return dumps
