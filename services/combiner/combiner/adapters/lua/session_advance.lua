#!lua flags=allow-oom
local lost = guard()
if lost then return lost end
local s = a.session
local version = tonumber(call('HGET', session_key(s.session_id), 'version'))
if version ~= s.version then
  return redis.error_reply('FCCONFLICT version ' .. version)
end
if a.finished then
  local state, model_id = unpack(call('HMGET', job_key(a.finished.job_id), 'state', 'model_id'))
  if state ~= a.finished.state or model_id ~= a.finished.model_id then
    return redis.error_reply('FCCONFLICT the job is not as it was: Redis failed over')
  end
end
call('HSET', session_key(s.session_id), 'state', s.state, 'reason', s.reason, 'current_job_id', s.current_job_id,
  'doc', s.doc, 'earlier_done', s.earlier_done, 'earlier_failed', s.earlier_failed)
all_of('RPUSH', results_key(s.session_id), s.settled)
if a.job then job_submit(a.job) end
if ENDED[s.state] then session_end(s.session_id) end
session_event(s.session_id)
return call('HGETALL', session_key(s.session_id))
