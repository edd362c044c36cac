local f = a.fields
local id = f.job_id
if call('EXISTS', job_key(id)) == 1 then return 0 end
archive_hash(job_key(id), f)
archive_hash(P .. 'clients:' .. id, a.clients)
archive_hash(P .. 'others:' .. id, a.others)
archive_hash(P .. 'answers:' .. id, a.answers)
all_of('SADD', P .. 'unrecorded:' .. id, a.unrecorded)
for client, text in pairs(a.clients) do archive_client(id, f, client, text) end
archive_index('job', id, a.seq)
if f.session_id ~= '' then call('ZADD', P .. 'session-jobs:' .. f.session_id, a.seq, id) end
if ENDED[f.state] then call('INCRBY', P .. 'records', f.weight) end
archive_work('job', id, f)
return 1
