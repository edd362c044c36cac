#!lua flags=allow-oom
-- a.life: the token of the replica's own entry as it was told last, or 0.
local function renewed(work, token)
  local lease = lease_read(work)
  if not lease or lease.owner ~= a.replica or lease.token ~= token then return false end
  lease.beat = lease.beat + 1
  lease_write(work, lease)
  return true
end

local lost = {}
for i, held in ipairs(a.leases) do
  if not renewed(held[1], held[2]) then lost[#lost + 1] = i end
end

local own = 'replica:' .. a.replica
local life = lease_read(own)
if not life then
  life = replica_begin(a.replica)
elseif life.owner ~= '' then
  renewed(own, life.token)
end
-- Somebody took it for dead and forgot its streams: it has to register them again.
if a.life > 0 and life.token ~= a.life then event('resync', {}) end

return {lost, lease_views()}
