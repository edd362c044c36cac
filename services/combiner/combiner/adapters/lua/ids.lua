#!lua flags=no-writes
return call('ZREVRANGE', P .. a.index, 0, a.limit - 1)
