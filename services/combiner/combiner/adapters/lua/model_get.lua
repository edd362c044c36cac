#!lua flags=no-writes
local dumps = {}
for i, id in ipairs(a.ids) do dumps[i] = model_dump(id) end
return dumps
