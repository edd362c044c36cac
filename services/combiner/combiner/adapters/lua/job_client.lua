#!lua flags=no-writes
return call('HGET', P .. 'clients:' .. a.job_id, a.client)
