-- m: {model_id, session_id, created_ms, doc}. The first record of an id stays.
local function model_register(m)
  local key = P .. 'model:' .. m.model_id
  if call('HSETNX', key, 'doc', m.doc) == 0 then return false end
  call('HSET', key, 'created_ms', m.created_ms > 0 and m.created_ms or NOW)
  local seq = call('INCR', P .. 'seq')
  call('ZADD', P .. 'all:model', seq, m.model_id)
  if m.session_id ~= '' then call('ZADD', P .. 'session-models:' .. m.session_id, seq, m.model_id) end
  return true
end

-- What a validation found. The clients' own figures are kept for as long as the job that brought them.
local function model_metrics(model_id, job_id)
  local key = P .. 'model:' .. model_id
  if call('EXISTS', key) == 0 then return end
  call('HSET', key, 'metrics', a.metrics, 'metrics_job', job_id)
  call('SET', P .. 'model-clients:' .. model_id, a.client_metrics)
  weigh(job_id, records_in(a.client_metrics))
end

local function model_dump(id)
  return {call('HGETALL', P .. 'model:' .. id), call('GET', P .. 'model-clients:' .. id)}
end
