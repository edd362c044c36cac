#!lua flags=allow-oom
local key = P .. 'streams:' .. a.replica
local flat, again, was_there = call('HGETALL', key), {}, {}
for i = 1, #flat, 2 do
  local view, client = string.match(flat[i + 1], '^(%a+) (.*)$')
  was_there[client] = true
  if stream_close(flat[i], client, view, true) then again[client] = true end
end
local names = {}
for client in pairs(again) do
  -- its other stream may have been the dead replica's too
  if has_stream(client) then names[#names + 1] = client end
end
call('DEL', key)
call('HDEL', P .. 'leases', 'replica:' .. a.replica)
presence_events(was_there)
names_event('tasks', '', names)
