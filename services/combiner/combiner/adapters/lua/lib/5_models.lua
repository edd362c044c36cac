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

-- Figures of a validation: the means are a.metrics, the clients' own are TEXT, kept for as long as the job that brought them.
local function model_metrics(model_id, job_id)
  local key = P .. 'model:' .. model_id
  if call('EXISTS', key) == 0 then return end
  call('HSET', key, 'metrics', a.metrics, 'metrics_job', job_id)
  call('SET', P .. 'model-clients:' .. model_id, TEXT)
  weigh(job_id, records_in(TEXT))
end

local function model_dump(id)
  return {call('HGETALL', P .. 'model:' .. id), call('GET', P .. 'model-clients:' .. id)}
end

-- An id whose object is being removed cannot be registered (again): nil, or the error to return.
local function model_refused(id)
  if call('EXISTS', P .. 'condemned:' .. id) == 1 then
    return redis.error_reply('FCCONFLICT the model ' .. id .. ' is being removed')
  end
end

local function model_condemn(id)
  call('SET', P .. 'condemned:' .. id, '1', 'PX', limits.condemned_ms)
end

-- Models that somebody relies on: the newest ones, and those of jobs and sessions that have not ended. Id -> true.
local function models_in_use()
  local used = {}
  for _, name in ipairs({'newest:committed', 'newest:put'}) do
    local id = call('GET', P .. name)
    if id then used[id] = true end
  end
  for _, id in ipairs(unended('job')) do
    used[call('HGET', P .. 'job:' .. id, 'parent_model_id') or ''] = true
  end
  for _, id in ipairs(unended('session')) do
    local doc = cjson.decode(call('HGET', P .. 'session:' .. id, 'doc'))
    used[doc.seed_model_id], used[doc.model_id] = true, true
  end
  return used
end

local function model_forget(id)
  local session_id = cjson.decode(call('HGET', P .. 'model:' .. id, 'doc')).session_id
  call('UNLINK', P .. 'model:' .. id, P .. 'model-clients:' .. id)
  call('ZREM', P .. 'all:model', id)
  call('SREM', P .. 'found', id)
  call('ZREM', P .. 'session-models:' .. session_id, id)
end
