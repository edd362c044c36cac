#!lua flags=allow-oom
-- A client that has failed, because of us, gets a new task. Asked for again with the same task id it changes nothing.
local lost = guard()
if lost then return lost end
local _, id = split_work(a.work)
local rec = client_read(id, a.client)
if not rec or call('HEXISTS', job_key(id), 'closed') == 1 then return 0 end
if rec[STATE] == 'asked' and rec[TASK] == a.task_id then return 1 end
if rec[STATE] ~= 'failed' or rec[REASON] ~= 'client_failed' then return 0 end
if call('HINCRBY', job_key(id), 'again:' .. a.client, 1) >= limits.max_deliveries then return 0 end
call('HINCRBY', job_key(id), 'failed', -1)
call('HSET', P .. 'clients:' .. id, a.client, cjson.encode({'asked', a.task_id, '', 0, '', '', NOW}))
task_write(a.client, a.task_id, {call('INCR', P .. 'seq'), call('HGET', job_key(id), 'kind'), id, 0, '', ''})
job_event(id, 'asked_again', a.client)
names_event('tasks', id, {a.client})
return 1
