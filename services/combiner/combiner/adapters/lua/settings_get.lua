return call('HGETALL', P .. 'settings')
