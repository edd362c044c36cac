#!lua flags=allow-oom
-- accept or reject a received update. An accepted one can still be rejected (its bytes are gone, for instance).
local lost = guard()
if lost then return lost end
local _, id = split_work(a.work)
local rec = client_read(id, a.client)
local state = rec and rec[STATE]
if state == a.state then return redis.status_reply('OK') end
if state ~= 'received' and not (state == 'accepted' and a.state == 'rejected') then
  return redis.error_reply('FCCONFLICT ' .. a.client .. ' is ' .. (state or 'not asked'))
end
if a.folded then job_folded(id, a.folded) end
move(id, a.client, rec, a.state, a.reason, a.detail)
return redis.status_reply('OK')
