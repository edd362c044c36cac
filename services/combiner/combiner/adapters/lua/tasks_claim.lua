#!lua flags=allow-oom
-- a.streams: {stream_id, client, view, nonce}. A task that went out with this stream's nonce goes out again: the reply
-- that carried it was lost.
local jobs, tasks = {}, {}

local function job_of_entry(id)
  if jobs[id] == nil then
    local j = call('HMGET', job_key(id), 'state', 'closed', 'session_id', 'parent_model_id', 'task_data')
    jobs[id] = j[1] == 'RUNNING' and not j[2] and {id, j[3], j[4], j[5]}
  end
  return jobs[id]
end

local function deliver(number, stream, task_id, entry)
  local job, raw = entry[JOB], ''
  if job == '' then raw = call('GET', raw_key(stream[2], task_id)) end
  if not raw or (job ~= '' and not job_of_entry(job)) then  -- expired, or out of the queue already
    call('HDEL', queue_key(stream[2]), task_id)
    return
  end
  if entry[STREAM] == '' then entry[DELIVERIES] = entry[DELIVERIES] + 1 end
  entry[STREAM], entry[NONCE] = stream[1], stream[4]
  task_write(stream[2], task_id, entry)
  tasks[#tasks + 1] = {number, task_id, entry[KIND], job, raw}
end

for number, stream in ipairs(a.streams) do
  local stream_id, client, view, nonce = unpack(stream)
  if call('HEXISTS', P .. 'streams:' .. replica_of(stream_id), stream_id) == 1 then
    for _, item in ipairs(tasks_of(client)) do
      local entry = item[2]
      local free = entry[STREAM] == '' or (entry[STREAM] == stream_id and entry[NONCE] == nonce)
      if free and SHOWN_BY[entry[KIND]][view] then deliver(number, stream, item[1], entry) end
    end
  end
end

local told = {}
for _, job in pairs(jobs) do
  if job then told[#told + 1] = job end
end
return {tasks, told}
