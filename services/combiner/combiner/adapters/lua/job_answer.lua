local ANSWERS_LOOKED_AT = 1024 * 1024  -- bytes of one job below which Redis's memory is not asked for

local function answers_room()
  local _, memory_limit = memory()
  local all = memory_limit and memory_limit * limits.answers_share or limits.max_answer_bytes
  return all / limits.max_running_jobs
end

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
local bytes = call('HINCRBY', job_key(id), 'answer_bytes', #a.data)
local most = bytes > ANSWERS_LOOKED_AT and answers_room()
if most and bytes > most then
  call('HINCRBY', job_key(id), 'answer_bytes', -#a.data)
  local mib = 1024 * 1024
  move(id, a.client, rec, 'rejected', 'no_room', string.format(
    'the answers to this job take %.1f of %.1f MiB that Redis has for them (see docs/state.md)',
    (bytes - #a.data) / mib, most / mib))
  return {'rejected', id, 'no_room'}
end
call('HSET', P .. 'answers:' .. id, a.client, a.data)
weigh(id, records_in(a.data))
move(id, a.client, rec, 'accepted')
return {'received', id, ''}
