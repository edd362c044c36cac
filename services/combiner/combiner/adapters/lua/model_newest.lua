#!lua flags=no-writes
local id = call('GET', P .. 'newest:committed') or call('GET', P .. 'newest:put')
return id and model_dump(id)
