return call('HGET', P .. 'clients:' .. a.job_id, a.client)
