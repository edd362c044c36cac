#!lua flags=allow-oom
local lost = guard()
if lost then return lost end
local _, id = split_work(a.work)
if tonumber(call('HGET', job_key(id), 'version')) < a.version then
  return redis.error_reply('FCCONFLICT the journal is not as far as it was: Redis failed over')
end
job_close(id, a.why)
return job_dump(id)
