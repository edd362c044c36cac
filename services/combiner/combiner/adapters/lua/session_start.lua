local s = a.session
if call('EXISTS', session_key(s.session_id)) == 0 then
  if is_full('session') then return redis.error_reply('FCFULL ' .. limits.max_queued .. ' sessions are queued already') end
  local refused = no_room()
  if refused then return refused end
  call('HSET', session_key(s.session_id), 'session_id', s.session_id, 'state', 'QUEUED', 'reason', '',
    'current_job_id', '', 'version', 0, 'created_ms', NOW, 'doc', s.doc)
  call('UNLINK', results_key(s.session_id))  -- a release that knew no such list may have left one
  enqueue('session', s.session_id)
  session_event(s.session_id)
end
return call('HGETALL', session_key(s.session_id))
