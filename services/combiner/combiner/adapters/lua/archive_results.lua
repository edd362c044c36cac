-- Of a session that is put back after them. a.at: how many there are before these.
local key = results_key(a.id)
if call('EXISTS', session_key(a.id)) == 1 then return 0 end
if a.at == 0 then call('UNLINK', key) end
if call('LLEN', key) == a.at then all_of('RPUSH', key, a.results) end
return 1
