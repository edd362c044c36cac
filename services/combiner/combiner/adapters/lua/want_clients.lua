#!lua flags=allow-oom
if not a.wanted then
  call('SREM', P .. 'wanting', a.job_id)
elseif call('HGET', job_key(a.job_id), 'state') == 'RUNNING' and call('SADD', P .. 'wanting', a.job_id) == 1 then
  job_event(a.job_id, 'waiting')
end
