-- a.entries: {client, kind, values (name -> text), session_id, round_id, model_id}. Also a sign of life: what is kept of a
-- client goes with it, and nothing is kept of a client that has had no stream yet.
-- What the client does just now; of metrics, which may be told after the answer, also what it did last.
local function job_for(client, kind, session_id, round_id, model_id)
  local function fits(id)
    local j = call('HMGET', job_key(id), 'session_id', 'round_id', 'parent_model_id')
    return j[1] and (session_id == '' or j[1] == session_id) and (round_id == '' or j[2] == round_id)
      and (model_id == '' or j[3] == model_id)
  end
  local tasks = tasks_of(client)
  for i = #tasks, 1, -1 do
    local id = tasks[i][2][JOB]
    if id ~= '' and fits(id) then return id end
  end
  if kind ~= 'metric' then return end
  for _, line in ipairs(call('LRANGE', P .. 'past:' .. client, 0, -1)) do
    local id = string.match(line, '\n(.*)$')
    if fits(id) then return id end
  end
end

local function keep_of_job(id, client, kind, values)
  local key = P .. 'reported:' .. id
  local before = call('HGET', key, client)
  local kept = before and cjson.decode(before) or {}
  local number = 0
  kept[kind] = kept[kind] or {}
  for _ in pairs(kept[kind]) do number = number + 1 end
  for name, text in pairs(values) do
    if kept[kind][name] == nil then number = number + 1 end
    if kept[kind][name] ~= nil or number <= limits.max_told then kept[kind][name] = text end
  end
  local text = cjson.encode(kept)
  call('HSET', key, client, text)
  weigh(id, records_in(text) - (before and records_in(before) or 0))
end

local heard, has_room = {}, not no_room()
for _, entry in ipairs(a.entries) do
  local client, kind, values, session_id, round_id, model_id = unpack(entry)
  heard[client] = ''
  if has_room and is_member(client) then told_keep(client, kind, values) end
  local id = has_room and kind ~= 'attribute' and job_for(client, kind, session_id, round_id, model_id)
  if id then keep_of_job(id, client, kind, values) end
end
roster_beat(heard)
