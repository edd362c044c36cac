#!lua flags=allow-oom
-- 0: the turn is this replica's, for a.hold_ms. Else how many milliseconds to wait before asking again.
local key = P .. 'upkeep'
local owner, till, due = unpack(call('HMGET', key, 'owner', 'until', 'due'))
if not due then
  due = NOW + a.every_ms
  call('HSET', key, 'due', due)
end
if owner and owner ~= a.replica and NOW < tonumber(till) then return tonumber(till) - NOW end
if owner ~= a.replica and NOW < tonumber(due) then return tonumber(due) - NOW end
call('HSET', key, 'owner', a.replica, 'until', NOW + a.hold_ms)
return 0
