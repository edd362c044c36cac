#!lua flags=allow-oom
-- a.changes: {stream_id, client, view, era, opened, by_us, name}, in their order.
local wanted = call('SCARD', P .. 'wanting') > 0
local came, fed, was_there = {}, {}, {}
for _, change in ipairs(a.changes) do
  local stream_id, client, view, era, opened, by_us, name = unpack(change)
  if was_there[client] == nil then was_there[client] = has_stream(client) end
  if opened then
    if stream_open(stream_id, client, view, era) and wanted then came[#came + 1] = client end
    -- Not of a client that the roster did not take.
    if call('HEXISTS', P .. 'streams:' .. replica_of(stream_id), stream_id) == 1 then name_learn(client, name) end
  elseif stream_close(stream_id, client, view, by_us) then
    fed[#fed + 1] = client
  end
end
presence_events(was_there)
names_event('client', '', came)
names_event('tasks', '', fed)
roster_purge(FORGOTTEN_AT_ONCE + #a.changes)
