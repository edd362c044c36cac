#!lua flags=allow-oom
local kind, id = split_work(a.work)
local lease = lease_read(a.work)
local ours = lease and lease.token == a.token
if ours and lease.owner == '' then return redis.status_reply('OK') end  -- asked for again: the reply was lost
if kind ~= 'replica' then
  local lost = guard()
  if lost then return lost end
elseif not ours then
  return redis.error_reply('FCLOST ' .. a.work)
end
lease_write(a.work, {token = lease.token, beat = lease.beat + 1, owner = ''})
event('released', kind == 'replica' and {} or {kind .. '_id', id, 'state', 'RUNNING'})
return redis.status_reply('OK')
