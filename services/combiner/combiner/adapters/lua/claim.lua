#!lua flags=allow-oom
local id, token = claim_next(a.kind, a.replica, limits['max_running_' .. a.kind .. 's'])
if not id then return false end
if a.kind == 'job' then
  call('HSET', job_key(id), 'phase', 'waiting')
  job_event(id, 'running')
else
  session_event(id)
end
return {id, token}
