#!lua flags=allow-oom
local _, id = split_work(a.work)
if ended_by_us(id, 'SUCCEEDED') then return redis.status_reply('OK') end
local lost = guard()
if lost then return lost end
local closed, undecided = unpack(call('HMGET', job_key(id), 'closed', 'undecided'))
if not closed or tonumber(undecided) ~= 0 then
  return redis.error_reply('FCCONFLICT not closed, or updates that are neither accepted nor rejected')
end
local refused = model_refused(a.model.model_id)
if refused then return refused end
model_register(a.model)
call('SET', P .. 'newest:committed', a.model.model_id)
call('HSET', job_key(id), 'model_id', a.model.model_id)
job_end_leased(id, 'SUCCEEDED', '', 'committed')
return redis.status_reply('OK')
