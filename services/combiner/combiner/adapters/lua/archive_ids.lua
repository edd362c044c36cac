#!lua flags=no-writes
return call('ZRANGE', P .. 'all:' .. a.kind, 0, -1, 'WITHSCORES')
