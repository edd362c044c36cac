#!lua flags=no-writes
local used, most = memory()
local early, refused = unpack(call('HMGET', P .. 'retention', 'early', 'refused'))
return {used or 0, most or 0, tonumber(early or '0'), tonumber(refused or '0')}
