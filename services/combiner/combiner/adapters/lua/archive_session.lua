local f = a.fields
if call('EXISTS', session_key(f.session_id)) == 1 then return 0 end
archive_hash(session_key(f.session_id), f)
archive_index('session', f.session_id, a.seq)
archive_work('session', f.session_id, f)
return 1
