#!lua flags=allow-oom
-- Also for jobs that ended, but not for an update that was recorded after all.
a.client = owner_of(a.client, a.task_id)
local id, rec = locate(a.client, a.task_id, a.job_id, {training = true, validation = true, inference = true})
if not rec or (rec[STATE] ~= 'asked' and not is_lost(rec)) then return end
if call('SADD', P .. 'unrecorded:' .. id, a.client) == 1 then job_event(id, 'unrecorded', a.client) end
