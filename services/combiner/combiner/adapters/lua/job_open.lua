local lost = guard()
if lost then return lost end
local _, id = split_work(a.work)
if call('HSETNX', job_key(id), 'opened_ms', NOW) == 1 then
  local kind = call('HGET', job_key(id), 'kind')
  local seq = call('INCR', P .. 'seq')
  local records, names = {}, {}
  for i, ask in ipairs(a.asks) do
    local client, task_id = ask[1], ask[2]
    records[2 * i - 1], records[2 * i] = client, cjson.encode({'asked', task_id, '', 0, '', '', NOW})
    task_write(client, task_id, {seq, kind, id, 0, '', ''})
    names[i] = client
  end
  all_of('HSET', P .. 'clients:' .. id, records)
  call('HSET', job_key(id), 'asked', #names, 'phase', 'collecting', 'deadline_ms', NOW + a.timeout_ms,
    'task_data', a.task_data, 'format', a.format, 'left_out', a.left_out)
  call('SREM', P .. 'wanting', id)
  weigh(id, #names + records_in(a.left_out))
  job_event(id, 'asked')
  names_event('tasks', id, names)
end
return job_dump(id)
