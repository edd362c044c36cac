local s = a.stream
if stream_close(s.stream_id, s.client, s.view, a.by_us) then names_event('tasks', '', {s.client}) end
