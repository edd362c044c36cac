-- Who is there: seen (client -> ms of Redis), eras, names (client -> its name), cut (clients), subs:<view> (client -> open streams), streams:<replica>.
-- A client that has had no stream yet is a guest (guests: client -> ms, as in seen). Anybody can send any name, so
-- guests have a small part of the roster for themselves, and nothing but this is kept of them.
local FORGOTTEN_AT_ONCE = 20  -- and as many as came
local GUESTS = 0.125

local function replica_of(stream_id)
  return string.match(stream_id, '^(.*):[^:]*$')
end

local function has_stream(client)
  for _, view in ipairs({'training', 'validation', 'all'}) do
    if call('HEXISTS', P .. 'subs:' .. view, client) == 1 then return true end
  end
  return false
end

-- A quarter of it in the reserve: what runs needs the memory more than clients that have fallen silent.
local function roster_room()
  local room = math.min(limits.max_roster, math.floor(share(limits.roster_share) / limits.client_bytes))
  return excess(limits.refuse_at) > 0 and math.ceil(room / 4) or room
end

local function is_silent(at)
  return tonumber(at) < NOW - limits.client_window_ms
end

-- The clients that the roster no longer keeps, the longest unseen first, at most `most`.
local function roster_expired(most)
  local found, number, room = {}, call('ZCARD', P .. 'seen'), roster_room()
  local function goes(at)
    return tonumber(at) < NOW - limits.roster_ms or (number > room and is_silent(at))
  end
  local first = call('ZRANGE', P .. 'seen', 0, 0, 'WITHSCORES')
  if not first[1] or not goes(first[2]) then return found end  -- as nearly always
  local oldest = call('ZRANGE', P .. 'seen', 0, most - 1, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    if not goes(oldest[i + 1]) then break end
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

-- Whether one more client can have this name. A client without a stream or a task makes room; no other is displaced.
local function name_has_room(name)
  if call('SCARD', P .. 'named:' .. name) < limits.max_named then return true end
  for _, other in ipairs(call('SMEMBERS', P .. 'named:' .. name)) do
    if not has_stream(other) and call('EXISTS', queue_key(other)) == 0 then
      name_forget(other)
      return true
    end
  end
  return false
end

local function name_learn(client, name)
  if name == '' or name == client or call('HGET', P .. 'names', client) == name then return end
  name_forget(client)
  if not name_has_room(name) then return end
  call('HSET', P .. 'names', client, name)
  call('SADD', P .. 'named:' .. name, client)
end

local function is_member(client)
  return call('ZSCORE', P .. 'seen', client) and not call('ZSCORE', P .. 'guests', client)
end

-- Its open tasks fail: nobody would wait for it any more, but the rounds that asked it would.
local function tasks_abandon(client)
  for _, item in ipairs(tasks_of(client)) do
    local task_id, id = item[1], item[2][JOB]
    local rec = id ~= '' and client_read(id, client)
    if rec and rec[STATE] == 'asked' and rec[TASK] == task_id then
      move(id, client, rec, 'failed', 'client_lost', 'not heard of for too long')
    end
  end
end

local function roster_forget(client)
  tasks_abandon(client)
  call('ZREM', P .. 'seen', client)
  call('ZREM', P .. 'guests', client)
  call('HDEL', P .. 'eras', client)
  name_forget(client)
  call('SREM', P .. 'cut', client)
  told_forget(client)
  call('DEL', queue_key(client), P .. 'past:' .. client)
end

local function roster_purge(most)
  local expired = roster_expired(most)
  for _, client in ipairs(expired) do roster_forget(client) end
  return expired
end

-- Whether there is room for one more guest; one that has fallen silent makes it.
local function guest_admitted(room)
  if no_room() then return false end
  if call('ZCARD', P .. 'guests') < room then return true end
  local oldest, at = unpack(call('ZRANGE', P .. 'guests', 0, 0, 'WITHSCORES'))
  if not oldest or not is_silent(at) then return false end
  roster_forget(oldest)
  return true
end

local function names_refused(number)
  if number > 0 then call('HINCRBY', P .. 'retention', 'refused', number) end
end

-- Streams that found no room are registered again when there is some: their clients keep them and wait for tasks.
local function streams_recalled()
  local since = tonumber(call('HGET', P .. 'retention', 'waiting'))
  if not since or since > NOW - limits.recall_ms then return end
  if call('ZCARD', P .. 'seen') >= roster_room() or no_room() then return end
  call('HDEL', P .. 'retention', 'waiting')
  event('resync', {})
end

-- The scores of the names in a sorted set, in their order; false for those that are not in it.
local function scores(key, names)
  local found = {}
  for i = 1, #names, ARGUMENTS do
    local some = call('ZMSCORE', P .. key, unpack(names, i, math.min(i + ARGUMENTS - 1, #names)))
    for _, score in ipairs(some) do found[#found + 1] = score end
  end
  return found
end

-- `clients`: name -> era, which a stream knows better: only of those who had none. Those who came (back) just now wake
-- whoever waits for clients.
local function roster_beat(clients)
  local names, seen, came, refused = {}, {}, {}, 0
  for client in pairs(clients) do names[#names + 1] = client end
  local wanted = call('SCARD', P .. 'wanting') > 0
  local before, guest = scores('seen', names), scores('guests', names)
  local room = math.ceil(roster_room() * GUESTS)
  for i, client in ipairs(names) do
    local is_guest = guest[i] or not (before[i] or has_stream(client))
    if before[i] or not is_guest or guest_admitted(room) then
      seen[#seen + 1], seen[#seen + 2] = NOW, client
      -- At once: it counts for the client that is looked at next.
      if is_guest then call('ZADD', P .. 'guests', NOW, client) end
      if clients[client] ~= '' then call('HSETNX', P .. 'eras', client, clients[client]) end
      if wanted and (not before[i] or is_silent(before[i])) then came[#came + 1] = client end
    else
      refused = refused + 1
    end
  end
  all_of('ZADD', P .. 'seen', seen)
  names_event('client', '', came)
  names_refused(refused)
  roster_purge(FORGOTTEN_AT_ONCE + #names)
  streams_recalled()
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

-- Whether the roster takes one more client, with a stream. A guest makes room, or the longest unseen client if it has
-- fallen silent.
local function client_admitted()
  if call('ZCARD', P .. 'seen') < roster_room() then return not no_room() end
  local guest = call('ZRANGE', P .. 'guests', 0, 0)[1]
  if guest then
    roster_forget(guest)
    return true
  end
  local oldest, at = unpack(call('ZRANGE', P .. 'seen', 0, 0, 'WITHSCORES'))
  if not oldest or not is_silent(at) then return false end
  roster_forget(oldest)
  return true
end

-- Also a sign of life. Returns whether the stream is new, and is known from now on.
local function stream_open(stream_id, client, view, era)
  if not is_member(client) and not client_admitted() then
    names_refused(1)
    call('HSETNX', P .. 'retention', 'waiting', NOW)
    return false
  end
  call('ZADD', P .. 'seen', NOW, client)
  call('ZREM', P .. 'guests', client)
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
