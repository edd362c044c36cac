if not call('ZSCORE', P .. 'seen', a.client) then return 0 end
if task_read(a.client, a.task_id) then return 1 end
local refused = no_room()
if refused then return refused end
local raw = {}
for _, item in ipairs(tasks_of(a.client)) do
  if item[2][JOB] == '' then raw[#raw + 1] = item[1] end
end
for i = 1, #raw - limits.max_raw + 1 do dequeue(a.client, raw[i], '') end
call('SET', raw_key(a.client, a.task_id), a.raw, 'PX', limits.raw_ms)
task_write(a.client, a.task_id, {call('INCR', P .. 'seq'), a.kind, '', 0, '', ''})
names_event('tasks', '', {a.client})
return 1
