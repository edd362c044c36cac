#!lua flags=allow-oom
a.client = owner_of(a.client, a.task_id)
local id, rec, open = locate(a.client, a.task_id, a.job_id, {training = true, validation = true, inference = true})
if not rec or not open or rec[STATE] ~= 'asked' then return 0 end
dequeue(a.client, rec[TASK], id)
move(id, a.client, rec, 'failed', a.reason, a.detail)
return 1
