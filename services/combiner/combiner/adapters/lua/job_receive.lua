#!lua flags=allow-oom
local reply, id, rec = judge({training = true}, a.update_id, function(rec)
  return rec[UPDATE] == a.update_id
end)
if reply then return reply end
rec[UPDATE], rec[EXAMPLES] = a.update_id, a.num_examples
if a.empty then
  move(id, a.client, rec, 'failed', 'empty_upload')
  return {'received', id, ''}
end
local owner = id .. '\n' .. a.client
local counted = call('GET', P .. 'update:' .. a.update_id)
if counted and counted ~= owner then
  move(id, a.client, rec, 'rejected', 'duplicate', 'this object was received before')
  return {'rejected', id, 'duplicate'}
end
call('SET', P .. 'update:' .. a.update_id, owner, 'PX', update_ms(call('HGET', job_key(id), 'deadline_ms')))
weigh(id, RECEIVED)
move(id, a.client, rec, 'received')
return {'received', id, ''}
