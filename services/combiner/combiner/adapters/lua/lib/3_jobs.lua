-- The journal of a job: job:<id>, and per client the record below in clients:<id>.
local STATE, TASK, UPDATE, EXAMPLES, REASON, DETAIL, AT = 1, 2, 3, 4, 5, 6, 7
local COUNTER = {received = 'undecided', accepted = 'accepted', rejected = 'rejected', failed = 'failed'}
local RECORD = 256  -- about the bytes of one
local RECEIVED = 1  -- record more, of an update that was received: its entry grows, and its object is known by its id
local JOBS_AT_AN_END, RECORDS_AT_AN_END = 200, 1000

local function job_key(id) return P .. 'job:' .. id end

-- `record`: of the client, for who would have to read it.
local function job_event(id, what, client, reason, record)
  local version = call('HINCRBY', job_key(id), 'version', 1)
  local j = call('HMGET', job_key(id), 'session_id', 'state', 'asked', 'accepted', 'rejected', 'failed', 'kind',
    'round_id')
  event(what, {
    'job_id', id, 'session_id', j[1], 'state', j[2], 'client', client or '', 'reason', reason or '',
    'asked', j[3], 'accepted', j[4], 'rejected', j[5], 'failed', j[6], 'version', version, 'kind', j[7],
    'round_id', j[8], 'record', record or '',
  })
end

-- What a job keeps in memory, in records; retention bounds the sum over the ended ones.
local function weigh(id, records)
  call('HINCRBY', job_key(id), 'weight', records)
  if ENDED[call('HGET', job_key(id), 'state')] then call('INCRBY', P .. 'records', records) end
end

local function records_in(text)
  return math.ceil(#text / RECORD)
end

-- How long to remember whose an update is: retention counts from the end of its round at the earliest.
local function update_ms(deadline_ms)
  return string.format('%d', limits.keep_ms + math.max(0, (tonumber(deadline_ms) or NOW) - NOW))
end

-- The most updates that one owner has folded: a job that kills its owners never gets past it.
local function job_folded(id, number)
  local before = tonumber(call('HGET', job_key(id), 'folded') or '0')
  if number > before then call('HSET', job_key(id), 'folded', number) end
end

-- An owner went away without giving its job back. The count starts again when there was progress since the last one.
local function job_owner_died(id)
  local kind, folded, accepted, before = unpack(call('HMGET', job_key(id), 'kind', 'folded', 'accepted', 'died_at'))
  local progress = kind == 'training' and (folded or '0') or accepted
  if progress ~= before then call('HSET', job_key(id), 'died_at', progress, 'owners_died', 0) end
  call('HINCRBY', job_key(id), 'owners_died', 1)
end

-- Without the answers, which can be large.
local function job_dump(id)
  return {
    call('HGETALL', job_key(id)), call('HGETALL', P .. 'clients:' .. id), call('HVALS', P .. 'others:' .. id),
    call('SMEMBERS', P .. 'unrecorded:' .. id),
  }
end

local function job_submit(j)
  if call('EXISTS', job_key(j.job_id)) == 1 then return end
  call('HSET', job_key(j.job_id), 'job_id', j.job_id, 'session_id', j.session_id, 'kind', j.kind, 'state', 'QUEUED',
    'reason', '', 'round_id', j.round_id, 'model_id', '', 'parent_model_id', j.parent_model_id, 'config', j.config,
    'phase', '', 'version', 0, 'created_ms', NOW, 'asked', 0, 'undecided', 0, 'accepted', 0, 'rejected', 0, 'failed', 0)
  weigh(j.job_id, 1 + records_in(j.config))
  enqueue('job', j.job_id)
  if j.session_id ~= '' then
    call('ZADD', P .. 'session-jobs:' .. j.session_id, call('GET', P .. 'seq'), j.job_id)
  end
  job_event(j.job_id, 'queued')
end

local function client_read(id, client)
  local text = call('HGET', P .. 'clients:' .. id, client)
  return text and cjson.decode(text)
end

-- One client's record changes its state; counters and the log follow.
local function move(id, client, rec, state, reason, detail)
  local from, to = COUNTER[rec[STATE]], COUNTER[state]
  if from then call('HINCRBY', job_key(id), from, -1) end
  call('HINCRBY', job_key(id), to, 1)
  rec[STATE], rec[REASON], rec[DETAIL], rec[AT] = state, reason or '', detail or '', NOW
  local text = cjson.encode(rec)
  call('HSET', P .. 'clients:' .. id, client, text)
  job_event(id, state, client, reason, state == 'received' and text)
end

local function is_lost(rec)
  return rec[STATE] == 'failed' and rec[REASON] == 'client_lost'
end

-- An answer that changes no asked client's record. Listed once, however often it is repeated.
local function list_other(id, client, reason, mark)
  local key, field = P .. 'others:' .. id, client .. '\n' .. reason .. '\n' .. mark
  local number = call('HLEN', key)
  if number >= limits.max_others or call('HEXISTS', key, field) == 1 or no_room() then return end
  call('HSET', key, field, cjson.encode({number, client, reason, ''}))
  call('HINCRBY', job_key(id), 'rejected', 1)
  weigh(id, 1 + records_in(field))
  job_event(id, 'listed', client, reason)
end

-- The job that an answer belongs to, by its task or by itself.
local function job_of(client, task_id, job_id)
  if task_id == '' then return job_id end
  local entry = task_read(client, task_id)
  if entry then return entry[JOB] end
  return job_of_past_task(client, task_id) or job_id
end

-- FEDn 0.11 to 0.26 asks for tasks by its id, and answers by its name: to the client of that name whose task this is.
-- An answer without a task is nobody else's.
local function owner_of(client, task_id)
  if task_id == '' or task_known(client, task_id) then return client end
  for _, other in ipairs(call('SMEMBERS', P .. 'named:' .. client)) do
    if task_known(other, task_id) then return other end
  end
  return client
end

-- Returns the job's id ('' if there is none), the client's record if it was asked, and whether answers count.
local function locate(client, task_id, job_id, kinds)
  local id = job_of(client, task_id, job_id)
  local kind, state, closed = unpack(call('HMGET', job_key(id), 'kind', 'state', 'closed'))
  if id == '' or not kind then return '', nil, false end
  local rec = client_read(id, client)
  if not rec or not kinds[kind] or (task_id ~= '' and rec[TASK] ~= task_id) then return id, nil, false end
  return id, rec, state == 'RUNNING' and not closed
end

-- The common part of all answers. Returns the reply if there is nothing more to do; else nil, the job's id and the
-- client's record, and the task has left its queue. `mark` tells this answer from others of the client.
local function judge(kinds, mark, is_same)
  a.client = owner_of(a.client, a.task_id)
  local id, rec, open = locate(a.client, a.task_id, a.job_id, kinds)
  if not rec then
    if id ~= '' then list_other(id, a.client, 'not_asked', mark) end
    if id == '' and a.task_id ~= '' then dequeue(a.client, a.task_id, '') end
    return {'rejected', id, 'not_asked'}
  end
  if is_same(rec, id) then return {'repeated', id, rec[REASON]} end
  local reason
  if not open then reason = 'late'
  elseif rec[STATE] ~= 'asked' and not is_lost(rec) then reason = 'duplicate' end
  if reason then
    list_other(id, a.client, reason, mark)
    return {'rejected', id, reason}
  end
  dequeue(a.client, rec[TASK], id)
  call('SREM', P .. 'unrecorded:' .. id, a.client)
  return nil, id, rec
end

-- Open tasks leave the queues.
local function withdraw(id)
  local flat = call('HGETALL', P .. 'clients:' .. id)
  for i = 1, #flat, 2 do
    if string.sub(flat[i + 1], 1, 8) == '["asked"' then
      dequeue(flat[i], cjson.decode(flat[i + 1])[TASK], id)
    end
  end
end

local function job_close(id, why)
  if call('HSETNX', job_key(id), 'closed', why) == 0 then return end
  withdraw(id)
  call('HSET', job_key(id), 'phase', 'aggregating')
  call('SREM', P .. 'wanting', id)
  job_event(id, 'closed', '', why)
end

local function job_forget(id)
  local session_id, weight, parent = unpack(call('HMGET', job_key(id), 'session_id', 'weight', 'parent_model_id'))
  local flat = call('HGETALL', P .. 'clients:' .. id)
  for i = 1, #flat, 2 do
    local update = cjson.decode(flat[i + 1])[UPDATE]
    if update ~= '' and call('GET', P .. 'update:' .. update) == id .. '\n' .. flat[i] then
      call('DEL', P .. 'update:' .. update)
    end
  end
  if call('HGET', P .. 'model:' .. parent, 'metrics_job') == id then
    call('UNLINK', P .. 'model-clients:' .. parent)
  end
  call('UNLINK', job_key(id), P .. 'clients:' .. id, P .. 'others:' .. id, P .. 'unrecorded:' .. id, P .. 'answers:' .. id,
    P .. 'reported:' .. id)
  call('ZREM', P .. 'all:job', id)
  call('ZREM', P .. 'ended:job', id)
  call('ZREM', P .. 'session-jobs:' .. session_id, id)
  call('DECRBY', P .. 'records', weight)
end

local function job_end(id, state, reason, what)
  if call('HSETNX', job_key(id), 'closed', '') == 1 then withdraw(id) end
  call('HSET', job_key(id), 'state', state, 'reason', reason, 'phase', '', 'ended_ms', NOW)
  call('SREM', P .. 'wanting', id)
  retire('job', id)
  call('INCRBY', P .. 'records', call('HGET', job_key(id), 'weight'))
  job_event(id, what, '', reason)
  -- Retention keeps pace: more goes at each end of a job than the job brought.
  purge_ended(JOBS_AT_AN_END, 2 * call('HGET', job_key(id), 'weight') + RECORDS_AT_AN_END)
end

-- `end` and `commit` asked for again by the one who did it: the reply was lost, not the step.
local function ended_by_us(id, state)
  local was, token = unpack(call('HMGET', job_key(id), 'state', 'end_token'))
  return was == state and token == string.format('%d', a.token)
end

local function job_end_leased(id, state, reason, what)
  call('HSET', job_key(id), 'end_token', string.format('%d', a.token))
  if a.timings then call('HSET', job_key(id), 'timings', a.timings) end
  job_end(id, state, reason, what)
end
