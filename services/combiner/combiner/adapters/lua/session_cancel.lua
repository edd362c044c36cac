#!lua flags=allow-oom
local key = session_key(a.session_id)
local state, job_id = unpack(call('HMGET', key, 'state', 'current_job_id'))
if not state then return false end
if not ENDED[state] then
  local job_state = call('HGET', job_key(job_id), 'state')
  if job_state and not ENDED[job_state] then job_end(job_id, 'CANCELLED', a.reason, 'cancelled') end
  call('HSET', key, 'state', 'CANCELLED', 'reason', a.reason)
  session_end(a.session_id)
  session_event(a.session_id)
end
return call('HGETALL', key)
