#!lua flags=no-writes
local ids = {}
for id in pairs(models_in_use()) do ids[#ids + 1] = id end
return ids
