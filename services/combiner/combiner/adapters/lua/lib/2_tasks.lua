-- The queue of a client is a hash: task id -> entry.
local SEQ, KIND, JOB, DELIVERIES, STREAM, NONCE = 1, 2, 3, 4, 5, 6
local PAST_TASKS = 16

local function queue_key(client) return P .. 'tasks:' .. client end

local function raw_key(client, task_id) return P .. 'raw:' .. client .. ':' .. task_id end

local function task_read(client, task_id)
  local text = call('HGET', queue_key(client), task_id)
  return text and cjson.decode(text)
end

local function task_write(client, task_id, entry)
  call('HSET', queue_key(client), task_id, cjson.encode(entry))
end

-- Of a client, in the order in which they were put: {task_id, entry}.
local function tasks_of(client)
  local flat, list = call('HGETALL', queue_key(client)), {}
  for i = 1, #flat, 2 do
    list[#list + 1] = {flat[i], cjson.decode(flat[i + 1])}
  end
  table.sort(list, function(x, y)
    if x[2][SEQ] ~= y[2][SEQ] then return x[2][SEQ] < y[2][SEQ] end
    return x[1] < y[1]
  end)
  return list
end

-- A task leaves the queue. Its job can still be found by it for a while: for answers that come late or twice.
local function dequeue(client, task_id, job_id)
  if call('HDEL', queue_key(client), task_id) == 0 then return end
  if job_id == '' then
    call('DEL', raw_key(client, task_id))
  else
    call('LPUSH', P .. 'past:' .. client, task_id .. '\n' .. job_id)
    call('LTRIM', P .. 'past:' .. client, 0, PAST_TASKS - 1)
  end
end

local function job_of_past_task(client, task_id)
  for _, line in ipairs(call('LRANGE', P .. 'past:' .. client, 0, -1)) do
    local past, job_id = string.match(line, '^(.-)\n(.*)$')
    if past == task_id then return job_id end
  end
end

local function task_known(client, task_id)
  return call('HEXISTS', queue_key(client), task_id) == 1 or job_of_past_task(client, task_id) ~= nil
end

local SHOWN_BY = {
  training = {training = true, all = true},
  validation = {validation = true, all = true},
  inference = {validation = true, all = true},
}
