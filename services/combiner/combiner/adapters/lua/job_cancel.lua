#!lua flags=allow-oom
local state = call('HGET', job_key(a.job_id), 'state')
if not state then return false end
if not ENDED[state] then job_end(a.job_id, 'CANCELLED', a.reason, 'cancelled') end
return job_dump(a.job_id)
