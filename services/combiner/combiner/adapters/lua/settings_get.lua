#!lua flags=no-writes
return call('HGETALL', P .. 'settings')
