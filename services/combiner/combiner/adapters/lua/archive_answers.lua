-- Of a job that is put back after them. a.at: how many there are before these.
if call('EXISTS', job_key(a.id)) == 1 then return 0 end
if a.at == 0 then call('UNLINK', P .. 'answers:' .. a.id) end
archive_hash(P .. 'answers:' .. a.id, a.answers)
return 1
