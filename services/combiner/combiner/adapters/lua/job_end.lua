#!lua flags=allow-oom
local _, id = split_work(a.work)
if ended_by_us(id, a.state) then return redis.status_reply('OK') end
local lost = guard()
if lost then return lost end
if a.metrics then
  call('HSET', job_key(id), 'metrics', a.metrics)
  weigh(id, records_in(a.metrics))
  model_metrics(call('HGET', job_key(id), 'parent_model_id'), id)
end
job_end_leased(id, a.state, a.reason, 'ended')
return redis.status_reply('OK')
