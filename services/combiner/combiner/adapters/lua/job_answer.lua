-- A client that echoes neither id can still be known by the model that it was asked about.
if a.task_id == '' and a.job_id == '' then
  for _, item in ipairs(tasks_of(a.client)) do
    local entry = item[2]
    if entry[JOB] ~= '' and entry[KIND] ~= 'training'
        and call('HGET', job_key(entry[JOB]), 'parent_model_id') == a.model_id then
      a.task_id = item[1]
      break
    end
  end
end
local reply, id, rec = judge({validation = true, inference = true}, a.digest, function(rec, id)
  return rec[STATE] == 'accepted' and call('HGET', P .. 'answers:' .. id, a.client) == a.data
end)
if reply then return reply end
if a.too_large then
  move(id, a.client, rec, 'rejected', 'too_large', a.too_large)
  return {'rejected', id, 'too_large'}
end
call('HSET', P .. 'answers:' .. id, a.client, a.data)
weigh(id, records_in(a.data))
move(id, a.client, rec, 'accepted')
return {'received', id, ''}
