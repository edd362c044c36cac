#!lua flags=no-writes
if a.all then return call('ZRANGE', P .. 'seen', 0, -1) end
return call('ZRANGEBYSCORE', P .. 'seen', NOW - limits.client_window_ms, NOW)
