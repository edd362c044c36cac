-- Who is there: seen (client -> ms of Redis), eras, names (client -> its name), cut (clients), subs:<view> (client -> open streams), streams:<replica>.
local FORGOTTEN_AT_ONCE = 20

local function replica_of(stream_id)
  return string.match(stream_id, '^(.*):[^:]*$')
end

local function has_stream(client)
  for _, view in ipairs({'training', 'validation', 'all'}) do
    if call('HEXISTS', P .. 'subs:' .. view, client) == 1 then return true end
  end
  return false
end

-- The clients that the roster no longer keeps, the longest unseen first, at most `most`.
local function roster_expired(most)
  local found, number = {}, call('ZCARD', P .. 'seen')
  local oldest = call('ZRANGE', P .. 'seen', 0, most - 1, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    if tonumber(oldest[i + 1]) >= NOW - limits.roster_ms and number <= limits.max_roster then break end
    found[#found + 1] = oldest[i]
    number = number - 1
  end
  return found
end

local function name_forget(client)
  local name = call('HGET', P .. 'names', client)
  if not name then return end
  call('SREM', P .. 'named:' .. name, client)
  call('HDEL', P .. 'names', client)
end

local function name_learn(client, name)
  if name == '' or name == client or call('HGET', P .. 'names', client) == name then return end
  name_forget(client)
  call('HSET', P .. 'names', client, name)
  call('SADD', P .. 'named:' .. name, client)
end

local function roster_purge(most)
  local expired = roster_expired(most)
  for _, client in ipairs(expired) do
    call('ZREM', P .. 'seen', client)
    call('HDEL', P .. 'eras', client)
    name_forget(client)
    call('SREM', P .. 'cut', client)
    call('DEL', queue_key(client), P .. 'past:' .. client, P .. 'told:' .. client)
  end
  return expired
end

-- `clients`: name -> era, which a stream knows better: only of those who had none. Those who came (back) just now wake
-- whoever waits for clients.
local function roster_beat(clients)
  local names, seen, came = {}, {}, {}
  for client, era in pairs(clients) do
    names[#names + 1] = client
    seen[#seen + 1], seen[#seen + 2] = NOW, client
    if era ~= '' then call('HSETNX', P .. 'eras', client, era) end
  end
  if call('SCARD', P .. 'wanting') > 0 then
    for _, client in ipairs(names) do
      local at = tonumber(call('ZSCORE', P .. 'seen', client))
      if not at or at < NOW - limits.client_window_ms then came[#came + 1] = client end
    end
  end
  all_of('ZADD', P .. 'seen', seen)
  names_event('client', '', came)
  roster_purge(FORGOTTEN_AT_ONCE)
end

-- The client's tasks that were handed to this stream go back to the queue. A delivery that we cut is not counted; one
-- too many of the others fails the client. Returns whether anything can be delivered again.
local function tasks_return(client, stream_id, by_us)
  local again = false
  for _, item in ipairs(tasks_of(client)) do
    local task_id, entry = item[1], item[2]
    if entry[STREAM] == stream_id then
      if by_us then entry[DELIVERIES] = entry[DELIVERIES] - 1 end
      if not by_us and entry[DELIVERIES] >= limits.max_deliveries then
        dequeue(client, task_id, entry[JOB])
        local rec = entry[JOB] ~= '' and client_read(entry[JOB], client)
        if rec then move(entry[JOB], client, rec, 'failed', 'client_lost', 'task delivered too often') end
      else
        entry[STREAM], entry[NONCE] = '', ''
        task_write(client, task_id, entry)
        again = true
      end
    end
  end
  return again
end

-- Also a sign of life. Returns whether the stream is new.
local function stream_open(stream_id, client, view, era)
  call('ZADD', P .. 'seen', NOW, client)
  if era ~= '' then call('HSET', P .. 'eras', client, era) end
  local replica = replica_of(stream_id)
  if call('HSETNX', P .. 'streams:' .. replica, stream_id, view .. ' ' .. client) == 0 then return false end
  if not lease_read('replica:' .. replica) then replica_begin(replica) end
  call('HINCRBY', P .. 'subs:' .. view, client, 1)
  call('SREM', P .. 'cut', client)
  return true
end

-- Returns whether the client's tasks can be shown by another stream right now.
local function stream_close(stream_id, client, view, by_us)
  if call('HDEL', P .. 'streams:' .. replica_of(stream_id), stream_id) == 1
      and call('HINCRBY', P .. 'subs:' .. view, client, -1) <= 0 then
    call('HDEL', P .. 'subs:' .. view, client)
  end
  if by_us and not has_stream(client) then call('SADD', P .. 'cut', client) end
  return tasks_return(client, stream_id, by_us) and has_stream(client)
end

-- Whose first stream was opened, or last one closed, in this step. `was_there`: client -> whether it had one before.
local function presence_events(was_there)
  local joined, left = {}, {}
  for client, was in pairs(was_there) do
    local is = has_stream(client)
    if is and not was then joined[#joined + 1] = client end
    if was and not is then left[#left + 1] = client end
  end
  names_event('joined', '', joined)
  names_event('left', '', left)
end
